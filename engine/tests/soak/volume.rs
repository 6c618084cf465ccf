//! A volume under a soak, with its collector beside it as on a node.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_engine::buffer::MemoryBuffer;
use holdfast_engine::cache::MemoryCache;
use holdfast_engine::codec::{self, DataKey};
use holdfast_engine::control::publish;
use holdfast_engine::env::{Clock, Entropy, Env};
use holdfast_engine::gc::{Rhythm, maintain};
use holdfast_engine::ids::{BLOCK_BYTES, GrantId, ObjectId, RecordNumber, SnapshotId, VolumeId};
use holdfast_engine::lineage::{Lineage, Source};
use holdfast_engine::log::{GrantMode, Log, Op, Record};
use holdfast_engine::map::{PageCache, VolumePages};
use holdfast_engine::snapshot;
use holdfast_engine::volume::{Limits, OpenOptions, Volume};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::model::{Model, Pattern, check};
use crate::store::Counting;

/// Snapshots are held until as much was written as the volume holds, so many times.
const HELD_VOLUMES: u64 = 2;
/// So many times as much as the volume holds is written before anything is measured, and while it is.
const WARM_VOLUMES: u64 = 4;
const MEASURED_VOLUMES: u64 = 3;

#[derive(Debug)]
struct Seeded(Mutex<ChaCha8Rng>);

impl Entropy for Seeded {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill(bytes);
    }
}

#[derive(Debug)]
struct Stopped;

impl Clock for Stopped {
    fn now_ms(&self) -> u64 {
        0
    }
}

pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(365 * 24 * 3600)
}

/// A volume of so many blocks in a store that counts; nobody has it yet.
pub struct Site {
    pub store: Counting,
    pub log: Log,
    pub limits: Limits,
}

impl Site {
    pub async fn new(blocks: u64, segment_bytes: u64) -> Self {
        let entropy = Arc::new(Seeded(Mutex::new(ChaCha8Rng::seed_from_u64(5))));
        let env = Env { clock: Arc::new(Stopped), entropy };
        let store = Counting::default();
        let volume = VolumeId::random(&*env.entropy);
        let key = Some(DataKey::random(&*env.entropy));
        let log = Log { store: Arc::new(store.clone()), volume, key, env };
        let limits = Limits {
            segment_bytes,
            inline_bytes: segment_bytes / 32,
            grace: Duration::ZERO,
            ..Limits::default()
        };
        let record = Record {
            volume,
            number: RecordNumber(1),
            id: ObjectId::random(&*log.env.entropy),
            session: ObjectId::NONE,
            prev: ObjectId::NONE,
            time_ms: 0,
            buffer_complete: 0,
            ops: vec![Op::Create { size_bytes: blocks * BLOCK_BYTES }],
        };
        let (number, id) = (record.number, record.id);
        let body = codec::encode_record(record, None, log.key.as_ref()).unwrap().bytes;
        log.put(number, id, body, deadline()).await.unwrap();
        Self { store, log, limits }
    }

    pub async fn grant(&self) -> GrantId {
        publish(&self.log, "node", GrantMode::ReadWrite, deadline()).await.unwrap()
    }

    fn options(&self, grant: GrantId) -> OpenOptions {
        let lineage = Lineage::default();
        let source = Source { store: Arc::new(self.store.clone()), key: self.log.key.clone() };
        lineage.insert(self.log.volume, source);
        let pages = PageCache::new(4 << 20);
        OpenOptions {
            grant,
            endpoint: String::new(),
            buffer: Arc::new(MemoryBuffer::new(64 << 20)),
            cache: Arc::new(MemoryCache::new(1 << 20)),
            pages: VolumePages::new(pages, lineage.clone(), self.log.volume, self.log.env.clone()),
            lineage,
            limits: self.limits.clone(),
        }
    }

    pub async fn open(&self, grant: GrantId) -> Volume {
        Volume::open(self.log.clone(), self.options(grant), deadline()).await.unwrap()
    }

    pub async fn check_snapshot(&self, id: SnapshotId, versions: &[u64]) {
        let OpenOptions { pages, lineage, cache, .. } = self.options(ObjectId::NONE);
        let reader = snapshot::reader(&self.log, id, pages, lineage, cache, deadline()).await.unwrap();
        let mut read = vec![0; versions.len() * BLOCK_BYTES as usize];
        reader.read(0, versions.len() as u64, &mut read).await.unwrap();
        check(&read, versions);
    }
}

/// What was measured; the first two in thousandths.
pub struct Measured {
    /// The most room taken, of what the head and the snapshots need.
    pub space: u64,
    /// Bytes put, of those written to the volume.
    pub writes: u64,
    /// Requests for each MiB written to the volume.
    pub requests: u64,
}

/// A soak under way.
pub struct Soak {
    site: Site,
    grant: GrantId,
    volume: Volume,
    model: Model,
    held: usize,
    snapshots: u64,
    blocks: u64,
}

impl Soak {
    pub async fn new(pattern: Pattern, held: usize) -> Self {
        let mib = std::env::var("HOLDFAST_SOAK_MIB").map_or(32, |mib| mib.parse().unwrap());
        let blocks = mib * ((1 << 20) / BLOCK_BYTES);
        let segment_bytes = (blocks * BLOCK_BYTES / 128).clamp(128 << 10, 8 << 20);
        let site = Site::new(blocks, segment_bytes).await;
        let grant = site.grant().await;
        let volume = site.open(grant).await;
        Self { site, grant, volume, model: Model::new(pattern, blocks), held, snapshots: 0, blocks }
    }

    /// Fills the volume, overwrites until it is steady, and measures while it overwrites more.
    pub async fn run(mut self) -> Measured {
        let rhythm = Rhythm { bytes: 1 << 20, records: 4096 };
        let collecting = tokio::spawn(maintain(self.volume.clone(), rhythm, Arc::new(Semaphore::new(1))));
        for lba in 0..self.blocks {
            self.write(lba).await;
        }
        self.overwrite(WARM_VOLUMES, false).await;
        let (put, requests) = (self.site.store.put_bytes(), self.site.store.requests());
        let space = self.overwrite(MEASURED_VOLUMES, true).await;
        let written = MEASURED_VOLUMES * self.blocks * BLOCK_BYTES;
        let measured = Measured {
            space,
            writes: (self.site.store.put_bytes() - put) * 1000 / written,
            requests: (self.site.store.requests() - requests) * (1 << 20) / written,
        };
        self.check().await;
        collecting.abort();
        measured
    }

    async fn write(&mut self, lba: u64) {
        let data = self.model.write(lba);
        self.volume.write(lba * BLOCK_BYTES, data).await.unwrap();
    }

    /// Overwrites so many times what the volume holds. Answers the most room taken meanwhile, if it is to be measured,
    /// in thousandths of what is needed.
    async fn overwrite(&mut self, volumes: u64, measured: bool) -> u64 {
        let batch = self.site.limits.segment_bytes / BLOCK_BYTES;
        let apart = HELD_VOLUMES * self.blocks / self.held.max(1) as u64;
        let sample = self.blocks / 64;
        let (mut snapshot_at, mut sample_at) = (apart, sample);
        let (mut written, mut space) = (0, 0);
        while written < volumes * self.blocks {
            for _ in 0..batch {
                let lba = self.model.choose();
                self.write(lba).await;
            }
            written += batch;
            self.volume.flush().await.unwrap();
            if self.held > 0 && written >= snapshot_at {
                snapshot_at += apart;
                self.snapshot().await;
            }
            // Until nobody has anything to do.
            tokio::time::sleep(Duration::from_secs(1)).await;
            if measured && written >= sample_at {
                sample_at += sample;
                let stored = self.site.store.stored_bytes().await;
                space = space.max(stored * 1000 / self.model.needed_bytes());
            }
        }
        space
    }

    /// Takes a snapshot, and deletes the oldest one that is too many.
    async fn snapshot(&mut self) {
        self.snapshots += 1;
        let id = self.volume.snapshot(&format!("s{}", self.snapshots), "").await.unwrap();
        self.model.snapshots.push_back((id, self.model.head.clone()));
        if self.model.snapshots.len() > self.held {
            let (snapshot, _) = self.model.snapshots.pop_front().unwrap();
            self.volume.append(vec![Op::DeleteSnapshot { snapshot }], false).await.unwrap();
        }
    }

    /// The volume, opened anew, and some of the snapshots read as written.
    async fn check(&self) {
        self.volume.abandon();
        let again = self.site.open(self.grant).await;
        let read = again.read(0, self.blocks * BLOCK_BYTES).await.unwrap();
        check(&read, &self.model.head);
        let every = self.model.snapshots.len().div_ceil(8).max(1);
        for (id, versions) in self.model.snapshots.iter().step_by(every) {
            self.site.check_snapshot(*id, versions).await;
        }
    }
}
