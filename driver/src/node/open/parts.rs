//! What volumes are opened with, and how.

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::buffer::{Budget, DirtyBuffer, Mutation, Ring};
use holdfast_engine::cache::{ChunkCache, CountedCache};
use holdfast_engine::env::Env;
use holdfast_engine::gc::{Rhythm, maintain};
use holdfast_engine::host::{Found, Host, HostError, OpenAs};
use holdfast_engine::journal::Journals;
use holdfast_engine::volume::{Fetcher, Limits, OpenError, Pace};
use tokio::sync::Semaphore;
use tonic::Status;

use super::{OpenVolume, ReadOnlyVolume, Served};
use crate::frontend::{FrontEnd, Saved, Stack};
use crate::handles::VolumeHandle;
use crate::incidents::Incidents;
use crate::keeper::Link;
use crate::offload::Offload;
use crate::pools::{Pools, deadline};
use crate::publication::{Access, Publication};
use crate::status;

/// See the module.
#[derive(Debug, Clone)]
pub struct Parts {
    /// The pools.
    pub pools: Pools,
    /// Makes block devices.
    pub front_end: FrontEnd,
    /// The keeper.
    pub keeper: Arc<Link>,
    /// Runs what may block.
    pub offload: Offload,
    /// Clock and randomness.
    pub env: Env,
    /// Where the controller reaches this process; empty if nowhere.
    pub endpoint: String,
    /// Bytes of each volume's dirty buffer.
    pub dirty_bytes: usize,
    /// What all dirty buffers share.
    pub dirty_budget: Arc<Budget>,
    /// The journals on this node's disk.
    pub journals: Journals,
    /// How long I/O waits for a store that is away.
    pub outage: Duration,
    /// How fast restored volumes are copied from their archives.
    pub hydration: Arc<Pace>,
    /// Rounds of garbage collection that are made at once.
    pub collections: Arc<Semaphore>,
    /// What befalls volumes.
    pub incidents: Incidents,
}

impl Parts {
    /// Opens a volume and builds its block device.
    pub async fn create(
        &self,
        handle: VolumeHandle,
        publication: Publication,
    ) -> Result<OpenVolume, Refused> {
        let opened = self.open(handle, publication).await?;
        let context = super::adopt::context(publication);
        let stack = self.front_end.create(&handle.to_string(), opened.served.device(), context).await;
        Ok(self.assemble(handle, publication, stack.map_err(status::stack)?, opened))
    }

    /// Opens a volume and goes on serving its block device.
    pub async fn adopt(
        &self,
        handle: VolumeHandle,
        publication: Publication,
        saved: Saved,
    ) -> Result<OpenVolume, Refused> {
        let opened = self.open(handle, publication).await?;
        let stack = self.front_end.adopt(saved, opened.served.device()).await;
        Ok(self.assemble(handle, publication, stack.map_err(status::stack)?, opened))
    }

    /// Opens a volume.
    pub(super) async fn open(
        &self,
        handle: VolumeHandle,
        publication: Publication,
    ) -> Result<Opened, Refused> {
        let deadline = deadline();
        let cache = Arc::new(CountedCache::new(Arc::clone(&self.pools.host().cache)));
        let counted = Arc::clone(&cache) as Arc<dyn ChunkCache>;
        let host = Host { cache: counted, ..self.pools.host().clone() };
        let found = self.pools.find(handle, deadline).await?;
        match publication.access {
            Access::ReadWrite => {
                let inner = self.dirty_buffer(handle).await?;
                let buffer = self.journaled(handle, publication.grant, &found, inner).await?;
                let open = OpenAs {
                    grant: publication.grant,
                    endpoint: self.endpoint.clone(),
                    buffer: Arc::clone(&buffer) as Arc<dyn DirtyBuffer>,
                    limits: Limits { outage: self.outage, ..Limits::default() },
                };
                match host.open(&found, open, deadline).await {
                    Ok(volume) => {
                        Ok(Opened { served: Served::Writer(volume, buffer), cache, found: Some(found) })
                    }
                    Err(HostError::Open(error)) => Err(error.into()),
                    Err(error) => Err(status::host(error).into()),
                }
            }
            Access::ReadOnly => {
                let lineage = host.lineage(&found, deadline).await.map_err(status::pool)?;
                let pages = host.page_source(&found.log, &lineage);
                let fetcher = Fetcher::new(lineage, Arc::clone(&host.cache), self.env.clone());
                let grant = publication.grant;
                let reader =
                    ReadOnlyVolume::open(found.log, grant, (pages, fetcher), self.outage, deadline).await?;
                Ok(Opened { served: Served::Reader(Arc::new(reader)), cache, found: None })
            }
        }
    }

    /// A served volume, whose garbage is collected and whose data that lies in archives is copied from now on, behind
    /// the user's back.
    fn assemble(
        &self,
        handle: VolumeHandle,
        publication: Publication,
        stack: Stack,
        Opened { served, cache, found }: Opened,
    ) -> OpenVolume {
        let mut hydration = None;
        if let Served::Writer(writer, _) = &served {
            hydration = found.map(|found| self.hydrate(handle, writer, found));
            let collecting = maintain(writer.clone(), Rhythm::default(), Arc::clone(&self.collections));
            tokio::spawn(async move {
                let over = collecting.await;
                tracing::debug!(volume = %handle, %over, "garbage is collected no longer");
            });
        }
        let freeze = tokio::sync::Mutex::default();
        OpenVolume { handle, publication, stack, freeze, hydration, cache, served }
    }

    /// Bytes of answered writes in a predecessor's dirty buffer, of which the log may have some.
    pub(super) async fn left_bytes(&self, handle: VolumeHandle) -> Result<u64, Status> {
        let adopted = self.front_end.adopt_dirty_region(&handle.to_string()).await.map_err(status::stack)?;
        let Some((region, _)) = adopted else { return Ok(0) };
        // One that cannot be read holds nothing that could be told of.
        let ring = Ring::open(region, &Budget::unlimited());
        let left = ring.and_then(|ring| ring.recover()).unwrap_or_default();
        let bytes = |(_, mutation): &(u64, Mutation)| match mutation {
            Mutation::Write { data, .. } => data.len() as u64,
            Mutation::Discard { .. } => 0,
        };
        Ok(left.iter().map(bytes).sum())
    }

    /// The volume's dirty buffer: a predecessor's, or a new one.
    async fn dirty_buffer(&self, handle: VolumeHandle) -> Result<Arc<dyn DirtyBuffer>, Status> {
        let key = handle.to_string();
        let region = match self.front_end.adopt_dirty_region(&key).await.map_err(status::stack)? {
            Some((region, _)) => region,
            None => self
                .front_end
                .create_dirty_region(&key, self.dirty_bytes, String::new())
                .await
                .map_err(status::stack)?,
        };
        let ring = Ring::open(region, &self.dirty_budget)
            .map_err(|error| Status::data_loss(format!("the dirty buffer of volume {handle}: {error}")))?;
        Ok(Arc::new(ring))
    }
}

/// A volume that was opened, and what is kept with it.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) served: Served,
    /// The cache as the volume uses it.
    cache: Arc<CountedCache>,
    /// Where it was found; of one that is only read, that does not matter.
    found: Option<Found>,
}

/// Why a volume is not served.
#[derive(Debug)]
pub enum Refused {
    /// It is not this node's any more.
    Lost(Status),
    /// It may be served later.
    Failed(Status),
}

impl From<OpenError> for Refused {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::NotGranted { .. } | OpenError::NoSuchVolume { .. } => Self::Lost(status::open(error)),
            OpenError::Log(_) | OpenError::Buffer(_) | OpenError::UnknownAncestor(_) => {
                Self::Failed(status::open(error))
            }
        }
    }
}

impl From<Status> for Refused {
    fn from(status: Status) -> Self {
        Self::Failed(status)
    }
}

impl From<Refused> for Status {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Lost(status) | Refused::Failed(status) => status,
        }
    }
}
