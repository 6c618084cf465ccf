//! Copying what a map names, as far as it can be read, into a volume, in one record.

use futures::future::join_all;
use tokio::time::Instant;

use super::SalvageError;
use super::object::PATIENCE;
use super::rebuild::Rebuilding;
use crate::env::Env;
use crate::ids::{BLOCK_BYTES, ObjectId};
use crate::map::{Extent, Location, MapError, MapView, Walk, mapped_bytes};
use crate::store::{StoreError, retry};
use crate::volume::{BlockReader, Bulk, FetchError, Fetcher, Volume, VolumeError};

/// Bytes of blocks read at once.
const STEP_BYTES: u64 = 4 << 20;
/// Extents read at once where some cannot be read.
const PARALLEL: usize = 16;

/// A range whose data cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Lost {
    /// Its first byte.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// Why.
    pub reason: String,
}

impl Lost {
    /// Adds a range behind the others.
    pub(super) fn add_to(self, lost: &mut Vec<Self>) {
        match lost.last_mut() {
            Some(last) if last.offset + last.len == self.offset && last.reason == self.reason => {
                last.len += self.len;
            }
            Some(_) | None => lost.push(self),
        }
    }
}

/// What was copied.
#[derive(Debug, Default)]
pub(super) struct Copied {
    pub copied_bytes: u64,
    pub lost: Vec<Lost>,
}

/// Copies what `view` names, read by `reader`, into the empty volume `to`.
pub(super) async fn copy(
    view: &MapView,
    reader: &BlockReader,
    to: &Volume,
    progress: &(dyn Fn(Rebuilding) + Sync),
) -> Result<Copied, SalvageError> {
    let total_bytes = mapped_bytes(view, |_| true).await?;
    let run = ObjectId::random(&*to.log().env.entropy);
    let mut step = Step {
        reader,
        env: &to.log().env,
        bulk: to.bulk(run),
        extents: Vec::new(),
        bytes: 0,
        copied: Copied::default(),
    };
    let mut done_bytes = 0;
    progress(Rebuilding { done_bytes, total_bytes });
    let mut walk = Walk::new(view);
    while let Some(extents) = walk.next().await? {
        for extent in extents {
            step.bytes += extent.bytes();
            step.extents.push(extent);
            if step.bytes >= STEP_BYTES {
                done_bytes += step.bytes;
                step.copy().await?;
                progress(Rebuilding { done_bytes, total_bytes });
            }
        }
    }
    step.copy().await?;
    let Step { bulk, copied, .. } = step;
    to.commit_bulk(bulk, Vec::new()).await?;
    progress(Rebuilding { done_bytes: total_bytes, total_bytes });
    Ok(copied)
}

struct Step<'a> {
    reader: &'a BlockReader,
    env: &'a Env,
    bulk: Bulk,
    extents: Vec<Extent>,
    bytes: u64,
    copied: Copied,
}

impl Step<'_> {
    /// Copies what has gathered.
    async fn copy(&mut self) -> Result<(), SalvageError> {
        self.bytes = 0;
        let extents = std::mem::take(&mut self.extents);
        // All at once is quickest; where that fails, each by itself shows which can be read.
        let all = self.read(&extents).await;
        let read = match all {
            Ok(read) => read.into_iter().map(Ok).collect(),
            Err(_) => {
                let mut each = Vec::with_capacity(extents.len());
                for batch in extents.chunks(PARALLEL) {
                    let reads = batch.iter().map(|extent| self.read(std::slice::from_ref(extent)));
                    each.extend(join_all(reads).await.into_iter().map(|read| read.map(|read| read.concat())));
                }
                each
            }
        };
        let mut run: (u64, Vec<u8>) = (0, Vec::new());
        for (extent, read) in extents.iter().zip(read) {
            match read {
                Ok(data) => {
                    if run.0 + run.1.len() as u64 / BLOCK_BYTES != extent.lba {
                        self.write(std::mem::replace(&mut run, (extent.lba, Vec::new()))).await?;
                    }
                    run.1.extend_from_slice(&data);
                }
                Err(error) => self.lose(extent, error).await?,
            }
        }
        Ok(self.write(run).await?)
    }

    async fn read(&self, extents: &[Extent]) -> Result<Vec<Vec<u8>>, FetchError> {
        let locations: Vec<Location> = extents.iter().filter_map(|extent| extent.location).collect();
        let chunks = self.reader.fetcher().chunks(&locations).await?;
        let blocks = extents.iter().zip(&locations).map(|(extent, location)| {
            let blocks = Fetcher::blocks(&chunks, location, extent.blocks);
            blocks.map(|blocks| blocks.to_vec()).ok_or(FetchError::Short { location: *location })
        });
        blocks.collect()
    }

    async fn write(&mut self, (lba, data): (u64, Vec<u8>)) -> Result<(), VolumeError> {
        if data.is_empty() {
            return Ok(());
        }
        self.copied.copied_bytes += data.len() as u64;
        self.bulk.write(lba, 0, &data).await
    }

    /// Notes that an extent cannot be read, if that is damage: a store that fails ends the copying.
    async fn lose(&mut self, extent: &Extent, error: FetchError) -> Result<(), SalvageError> {
        let reason = match error {
            FetchError::Gone { .. } | FetchError::Codec(_) | FetchError::Short { .. } => error.to_string(),
            FetchError::Store(StoreError::Refused { key, .. }) if self.is_cut_off(extent, &key).await? => {
                format!("{key} is truncated")
            }
            FetchError::Store(error) => return Err(error.into()),
            FetchError::UnknownAncestor(error) => return Err(MapError::from(error).into()),
        };
        let (offset, len) = (extent.lba * BLOCK_BYTES, extent.bytes());
        Lost { offset, len, reason }.add_to(&mut self.copied.lost);
        Ok(())
    }

    /// Whether the object is shorter than the extent needs: a range beyond its end is refused.
    async fn is_cut_off(&self, extent: &Extent, key: &str) -> Result<bool, SalvageError> {
        let Some(location) = extent.location else { return Ok(false) };
        let source = self.reader.fetcher().source(location.segment.volume).map_err(MapError::from)?;
        let listed = retry(self.env, Instant::now() + PATIENCE, || source.store.list(key, None, 1)).await?;
        let need = u64::from(location.stored_offset) + u64::from(location.stored_len);
        Ok(listed.first().is_some_and(|listed| listed.key == key && listed.size_bytes < need))
    }
}
