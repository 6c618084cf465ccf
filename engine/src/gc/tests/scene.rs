//! A volume, its store, and a plain model of what it holds.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;

use crate::buffer::MemoryBuffer;
use crate::cache::ChunkCache;
use crate::codec::DataKey;
use crate::control::{publish, unpublish};
use crate::env::Env;
use crate::host::Host;
use crate::ids::{BLOCK_BYTES, GrantId, ObjectId, SessionId, VolumeId};
use crate::lineage::{Lineage, Source};
use crate::log::{Control, ControlOnly, GrantMode, Log, Op, Put, Record};
use crate::map::{PageCache, VolumePages};
use crate::pool::{Access, Pool, PoolKind, PoolSet, layout};
pub(crate) use crate::store::Gate;
use crate::store::{Listed, Memory, Store};
pub(crate) use crate::testing::content;
use crate::volume::{Limits, OpenOptions, Volume};
use crate::{codec, snapshot};

pub const BLOCKS: u64 = 1024;

/// Keeps nothing: every read goes to the store.
#[derive(Debug)]
pub struct NoCache;

impl ChunkCache for NoCache {}

pub fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(100 * 3600)
}

/// A process of its own, which reads and writes the pool through `store`.
pub async fn host(store: Arc<dyn Store>) -> (Arc<Pool>, Host) {
    let env = Env::system();
    let pool = Pool::over("p", "memory", store, None, Access::ReadWrite, env.clone()).await.unwrap();
    let pools = Arc::new(PoolSet::of([(PoolKind::Pool, Arc::clone(&pool))], env));
    (pool, Host { pools, pages: PageCache::new(1 << 20), cache: Arc::new(NoCache) })
}

/// A volume in a store in memory.
pub struct Scene {
    pub store: Memory,
    pub log: Log,
    pub limits: Limits,
    /// The version of each block; 0 was never written.
    pub model: Vec<u64>,
    pub random: ChaCha8Rng,
}

impl Scene {
    pub async fn new() -> Self {
        let key = DataKey::random(&*Env::system().entropy);
        Self::over(Memory::default(), Some(key)).await
    }

    /// A volume in a store that holds a pool without encryption.
    pub async fn unencrypted(store: Memory) -> Self {
        Self::over(store, None).await
    }

    async fn over(store: Memory, key: Option<DataKey>) -> Self {
        let env = Env::system();
        let volume = VolumeId::random(&*env.entropy);
        let log = Log { store: Arc::new(store.clone()), volume, key, env };
        let limits = Limits {
            segment_bytes: 128 << 10,
            inline_bytes: 8 << 10,
            checkpoint_records: 4,
            grace: Duration::ZERO,
            ..Limits::default()
        };
        let model = vec![0; BLOCKS as usize];
        let scene = Self { store, log, limits, model, random: ChaCha8Rng::seed_from_u64(7) };
        scene.append(ObjectId::NONE, vec![Op::Create { size_bytes: BLOCKS * BLOCK_BYTES }]).await;
        scene
    }

    /// Appends a record to the log as somebody else would.
    pub async fn append(&self, session: SessionId, ops: Vec<Op>) {
        let state = self.log.replay(&mut ControlOnly, deadline()).await.unwrap();
        let id = ObjectId::random(&*self.log.env.entropy);
        let record = Record {
            volume: self.log.volume,
            number: state.next,
            id,
            session,
            prev: state.control.last,
            time_ms: 0,
            buffer_complete: 0,
            ops,
        };
        let body = codec::encode_record(record, None, self.log.key.as_ref()).unwrap().bytes;
        assert!(matches!(self.log.put(state.next, id, body, deadline()).await, Ok(Put::Done)));
    }

    pub async fn control(&self) -> Control {
        self.log.replay(&mut ControlOnly, deadline()).await.unwrap().control
    }

    pub async fn grant(&self, node: &str) -> GrantId {
        publish(&self.log, node, GrantMode::ReadWrite, deadline()).await.unwrap()
    }

    pub async fn detach(&self, node: &str) {
        unpublish(&self.log, node, deadline()).await.unwrap();
    }

    pub fn options(&self, store: Arc<dyn Store>, grant: GrantId) -> OpenOptions {
        let lineage = Lineage::default();
        lineage.insert(self.log.volume, Source { store, key: self.log.key.clone() });
        let cache = PageCache::new(1 << 20);
        let pages = VolumePages::new(cache, lineage.clone(), self.log.volume, self.log.env.clone());
        OpenOptions {
            grant,
            endpoint: String::new(),
            buffer: Arc::new(MemoryBuffer::new(32 << 20)),
            cache: Arc::new(NoCache),
            pages,
            lineage,
            limits: self.limits.clone(),
        }
    }

    pub async fn open(&self, grant: GrantId) -> Volume {
        self.open_through(Arc::new(self.store.clone()), grant).await
    }

    pub async fn open_through(&self, store: Arc<dyn Store>, grant: GrantId) -> Volume {
        let log = Log { store: store.clone(), ..self.log.clone() };
        Volume::open(log, self.options(store, grant), deadline()).await.unwrap()
    }

    /// Opens the volume anew on `node`, which takes it from whoever has it.
    pub async fn take_over(&self, from: &str, node: &str) -> Volume {
        self.detach(from).await;
        self.open(self.grant(node).await).await
    }

    /// Writes the blocks anew.
    pub async fn write(&mut self, volume: &Volume, blocks: Range<u64>) {
        let mut data = BytesMut::new();
        for lba in blocks.clone() {
            self.model[lba as usize] += 1;
            data.extend_from_slice(&content(lba, self.model[lba as usize]));
        }
        volume.write(blocks.start * BLOCK_BYTES, data.freeze()).await.unwrap();
    }

    /// Writes single random blocks, flushing now and then.
    pub async fn scatter(&mut self, volume: &Volume, writes: usize, flush_every: usize) {
        for n in 0..writes {
            let lba = self.random.random_range(0..BLOCKS);
            self.write(volume, lba..lba + 1).await;
            if n % flush_every == flush_every - 1 {
                volume.flush().await.unwrap();
            }
        }
        volume.flush().await.unwrap();
    }

    pub async fn check(&self, volume: &Volume) {
        let read = volume.read(0, BLOCKS * BLOCK_BYTES).await.unwrap();
        check_blocks(&read, &self.model);
    }

    /// Opens the volume anew and checks every block.
    pub async fn check_reopened(&self, grant: GrantId) -> Volume {
        let volume = self.open(grant).await;
        self.check(&volume).await;
        volume
    }

    pub async fn check_snapshot(&self, id: crate::ids::SnapshotId, model: &[u64]) {
        let options = self.options(Arc::new(self.store.clone()), ObjectId::NONE);
        let (pages, lineage, cache) = (options.pages, options.lineage, options.cache);
        let reader = snapshot::reader(&self.log, id, pages, lineage, cache, deadline()).await.unwrap();
        let mut read = vec![0; (BLOCKS * BLOCK_BYTES) as usize];
        reader.read(0, BLOCKS, &mut read).await.unwrap();
        check_blocks(&read, model);
    }

    pub async fn listed(&self, prefix: &str) -> Vec<Listed> {
        self.store.list(prefix, None, 1 << 20).await.unwrap()
    }

    pub async fn keys(&self, prefix: &str) -> Vec<String> {
        self.listed(prefix).await.into_iter().map(|listed| listed.key).collect()
    }

    pub async fn segments(&self) -> Vec<String> {
        self.keys(&layout::segments(self.log.volume)).await
    }

    /// Bytes of everything that the volume has in the store.
    pub async fn stored_bytes(&self) -> u64 {
        self.listed("").await.iter().map(|listed| listed.size_bytes).sum()
    }
}

/// Fails unless `read` holds these versions of the blocks.
pub fn check_blocks(read: &[u8], model: &[u64]) {
    for (lba, version) in model.iter().enumerate() {
        let at = lba * BLOCK_BYTES as usize;
        let same = read[at..at + BLOCK_BYTES as usize] == content(lba as u64, *version)[..];
        assert!(same, "block {lba} is not what version {version} wrote");
    }
}
