//! Opening what a Job needs: the target, and the one pool that holds its source.

use std::path::Path;
use std::sync::Arc;

use holdfast_engine::cache::MemoryCache;
use holdfast_engine::env::Env;
use holdfast_engine::host::Host;
use holdfast_engine::ids::Handle;
use holdfast_engine::map::PageCache;
use holdfast_engine::pool::{Access, Pool, PoolKind, PoolSet};
use holdfast_engine::store::PoolConfig;

use super::JobError;

/// Bytes of maps kept near.
const PAGES_BYTES: usize = 64 << 20;
/// Bytes of data kept near: a Job reads each block once.
const CHUNKS_BYTES: u64 = 32 << 20;

fn config(path: &Path) -> Result<PoolConfig, JobError> {
    let text =
        std::fs::read_to_string(path).map_err(|reason| JobError::File { path: path.into(), reason })?;
    PoolConfig::parse(&text).map_err(|reason| JobError::Config { path: path.into(), reason })
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Opens the target, and the pool in `pools_dir` that `source` lies in.
pub async fn open(
    pools_dir: Option<&Path>,
    target_file: &Path,
    source: Option<Handle>,
) -> Result<(Host, Arc<Pool>), JobError> {
    let env = Env::system();
    let target =
        Pool::open(&stem(target_file), &config(target_file)?, &[], Access::ReadWrite, env.clone()).await?;
    let mut pools = vec![(PoolKind::Target, Arc::clone(&target))];
    if let (Some(directory), Some(handle)) = (pools_dir, source) {
        pools.push((PoolKind::Pool, find(directory, handle, &env).await?));
    }
    let host = Host {
        pools: Arc::new(PoolSet::of(pools, env)),
        pages: PageCache::new(PAGES_BYTES),
        cache: Arc::new(MemoryCache::new(CHUNKS_BYTES)),
    };
    Ok((host, target))
}

async fn find(directory: &Path, handle: Handle, env: &Env) -> Result<Arc<Pool>, JobError> {
    let entries = std::fs::read_dir(directory);
    let entries = entries.map_err(|reason| JobError::File { path: directory.into(), reason })?;
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    files.sort();
    let mut reasons = String::new();
    for path in files {
        let opened = match config(&path) {
            Ok(config) => Pool::open(&stem(&path), &config, &[], Access::ReadWrite, env.clone()).await,
            Err(error) => {
                reasons.push_str(&format!("; {error}"));
                continue;
            }
        };
        match opened {
            Ok(pool) if pool.id() == handle.pool => return Ok(pool),
            Ok(_) => {}
            Err(error) => reasons.push_str(&format!("; {error}")),
        }
    }
    Err(JobError::NoPool { directory: directory.into(), handle, reasons })
}
