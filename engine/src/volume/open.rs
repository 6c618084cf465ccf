//! Opening a volume: replay, Open, look again, take over what a predecessor has answered.
//!
//! # Guarantees
//! What a predecessor has answered under the same grant, and the log does not have, is read from the first moment on
//! and goes into the first batch. So the volume is served before that batch is in the log: its entries stand where the
//! predecessor's unflushed writes stood, and a flush waits for them like for any others. A volume is not opened for its
//! user while the pool of an ancestor that it needs is not loaded: it waits, where its reads would fail.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;

use super::checkpoint::Checkpointer;
use super::commit::Committer;
use super::read::{BlockReader, Blocks};
use super::status::StatusBoard;
use super::unlogged::Unlogged;
use super::upload::{Spare, UPLOADS};
use super::{Fetcher, Limits, Outage, Shared, Volume, Wanted, random_id};
use crate::buffer::{BufferError, DirtyBuffer};
use crate::cache::ChunkCache;
use crate::codec;
use crate::ids::{GrantId, SessionId, SnapshotId, VolumeId};
use crate::lineage::{Lineage, UnknownAncestor};
use crate::log::{Control, GrantMode, Log, LogError, Op, Put, Record, Replayed, Sink};
use crate::map::{Map, MapView, PageSource, StoredMap};

/// Requests to the committer that wait at most.
const REQUESTS: usize = 64;

/// What an opener brings along.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The grant to open under.
    pub grant: GrantId,
    /// Where the controller reaches this process (`host:port`); empty if nowhere.
    pub endpoint: String,
    /// Where answered writes wait for the log.
    pub buffer: Arc<dyn DirtyBuffer>,
    /// Chunks kept near.
    pub cache: Arc<dyn ChunkCache>,
    /// Reads and writes the pages of the map.
    pub pages: Arc<dyn PageSource>,
    /// Where the volume's and its ancestors' objects are read.
    pub lineage: Lineage,
    /// Bounds and rhythms.
    pub limits: Limits,
}

/// Why a volume could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The grant is not in force (any more): the volume must be published to this node again.
    #[error("volume {volume}: its grant is no longer in force on this node; it has to be attached again")]
    NotGranted {
        /// The volume.
        volume: VolumeId,
    },
    /// The volume is deleted, or was never created.
    #[error("volume {volume} does not exist")]
    NoSuchVolume {
        /// The volume.
        volume: VolumeId,
    },
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The dirty buffer failed.
    #[error(transparent)]
    Buffer(#[from] BufferError),
    /// Its map names an ancestor whose pool is not loaded (yet): reads would fail.
    #[error(transparent)]
    UnknownAncestor(#[from] UnknownAncestor),
}

/// Follows the map through a replay.
#[derive(Debug)]
pub struct MapSink {
    pages: Arc<dyn PageSource>,
    /// The map so far.
    pub map: Map,
    /// Snapshots met on the way whose maps no root has.
    pub snapshots: BTreeMap<SnapshotId, MapView>,
}

impl MapSink {
    /// A sink that reads pages from `pages`.
    pub fn new(pages: Arc<dyn PageSource>) -> Self {
        Self { map: Map::empty(Arc::clone(&pages)), pages, snapshots: BTreeMap::new() }
    }
}

#[async_trait::async_trait]
impl Sink for MapSink {
    fn begin(&mut self, root: Option<&StoredMap>) {
        let pages = Arc::clone(&self.pages);
        self.map =
            root.map_or_else(|| Map::empty(Arc::clone(&pages)), |map| Map::from_stored(pages.clone(), map));
        self.snapshots.clear();
    }

    async fn effective(&mut self, record: &Record, _control: &Control) -> Result<(), LogError> {
        self.map.apply(&record.ops).await?;
        if record.ops.iter().any(|op| matches!(op, Op::Snapshot { .. })) {
            self.snapshots.insert(SnapshotId(record.number.0), self.map.freeze());
        }
        Ok(())
    }
}

impl Volume {
    /// Opens the volume of `log` for reading and writing, under a grant. What a predecessor of this process has
    /// answered under the same grant, and the dirty buffer still has, is on its way into the log when this returns.
    pub async fn open(log: Log, options: OpenOptions, deadline: Instant) -> Result<Self, OpenError> {
        let mut sink = MapSink::new(Arc::clone(&options.pages));
        let (session, state) = open_session(&log, &options, &mut sink, deadline).await?;
        options.pages.begin_session(session);
        let committed = state.control.buffer_complete;
        let dropped = options.buffer.bind(options.grant, committed)?;
        if dropped > 0 {
            tracing::warn!(volume = %log.volume, dropped, "writes of a grant that was taken back are dropped");
        }
        let mut unlogged = Unlogged::new(committed);
        for (sequence, mutation) in options.buffer.recover()? {
            unlogged.record(sequence, &mutation, &options.limits);
        }
        unlogged.want_all();

        let map = Arc::new(sink.map);
        let fetcher = Fetcher::new(options.lineage, options.cache, log.env.clone());
        let checkpointer =
            Checkpointer::new(log.clone(), session, options.limits.clone(), &state, sink.snapshots);
        let outage = options.limits.outage;
        let reader = BlockReader::new(log.volume, Blocks::Head(Arc::clone(&map)), fetcher);
        let reader = reader.reading_ahead(options.limits.ahead);
        let shared = Arc::new(Shared {
            id: log.volume,
            log: log.clone(),
            session,
            limits: options.limits,
            size_bytes: AtomicU64::new(state.control.size_bytes),
            buffer: options.buffer,
            unlogged: Mutex::new(unlogged),
            ownership: Mutex::default(),
            bell: Notify::new(),
            uploads: Semaphore::new(UPLOADS),
            spare: Spare::default(),
            board: StatusBoard::new(log.volume, committed, outage),
            reader,
            reads: Outage::new(log.volume, "reads", outage),
            wanted: Wanted::default(),
            closed: AtomicBool::new(false),
            whole: tokio::sync::RwLock::new(()),
        });
        shared.begin_uploads();
        let (requests, receiver) = mpsc::channel(REQUESTS);
        let committer = Committer {
            shared: Arc::clone(&shared),
            log,
            pages: options.pages,
            map,
            control: state.control,
            next: state.next,
            requests: receiver,
            checkpointer,
            fence_seen: Instant::now(),
        };
        tokio::spawn(committer.run());
        Ok(Self { shared, requests })
    }
}

/// Appends an Open and returns the state that shows it.
async fn open_session(
    log: &Log,
    options: &OpenOptions,
    sink: &mut MapSink,
    deadline: Instant,
) -> Result<(SessionId, Replayed), OpenError> {
    // Sessions of ours that a replay may find current: an Open counts only if the state reached in the end shows it.
    let mut ours: Option<SessionId> = None;
    loop {
        let mut state = log.replay(sink, deadline).await?;
        // A deleted volume is opened only to collect what is left of it.
        let collects = |grant: &crate::log::Grant| grant.mode == GrantMode::Maintenance;
        let dead = state.control.dead && !state.control.grant.as_ref().is_some_and(collects);
        if state.control.last.is_none() || dead {
            return Err(OpenError::NoSuchVolume { volume: log.volume });
        }
        if let (Some(current), Some(session)) = (&state.control.session, ours)
            && current.id == session
        {
            return Ok((session, state));
        }
        if state.control.grant.as_ref().is_none_or(|grant| grant.id != options.grant) {
            return Err(OpenError::NotGranted { volume: log.volume });
        }
        // Maintenance moves and deletes what is the volume's own.
        if state.control.grant.as_ref().is_some_and(|grant| grant.mode == GrantMode::ReadWrite) {
            options.lineage.reaches(&sink.map.origins())?;
        }
        let id = random_id(&log.env);
        let resumes = state.control.session.as_ref().map_or(SessionId::NONE, |session| session.id);
        let record = Record {
            volume: log.volume,
            number: state.next,
            id,
            session: id,
            prev: state.control.last,
            time_ms: log.env.clock.now_ms(),
            buffer_complete: 0,
            ops: vec![Op::Open { grant: options.grant, resumes, endpoint: options.endpoint.clone() }],
        };
        state.control.apply(&record).map_err(|reason| LogError::Illegal { volume: log.volume, reason })?;
        let encoded = codec::encode_record(record, None, log.key.as_ref()).map_err(LogError::from)?;
        let number = state.next;
        match log.put(number, id, encoded.bytes, deadline).await {
            Ok(Put::Done) => {}
            Ok(Put::Taken(_)) | Err(LogError::Overtaken { .. }) => continue,
            Err(error) => return Err(error.into()),
        }
        ours = Some(id);
        if log.newest_root(deadline).await?.unwrap_or_default() <= state.base {
            state.next = number.next();
            state.kept.push(number);
            return Ok((id, state));
        }
    }
}
