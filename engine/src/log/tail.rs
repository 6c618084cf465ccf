//! Reading and appending records, one volume's log seen through its store.
//!
//! # Guarantees
//! - [`Log::put`] says [`Put::Done`] only when exactly these bytes lie at that number, also when a reply was lost; a
//!   retry at the same number sends the same bytes.
//! - [`Log::newest_root`] sees every root whose put was acknowledged before the call.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{LogError, Record};
use crate::codec::{self, CodecError, DataKey, Envelope, ObjectKind, ObjectName, SegmentTable};
use crate::env::Env;
use crate::ids::{ObjectId, RecordNumber, VolumeId};
use crate::map::Root;
use crate::pool::layout;
use crate::store::{Backoff, Listed, Store, StoreError, retry};

/// Names asked for in one listing.
pub(crate) const LIST_PAGE: usize = 1000;
/// What is read first of a segment: envelope and table of all but the most scattered ones.
const TABLE_BYTES: u64 = 64 << 10;

/// A volume's log in its store.
#[derive(Debug, Clone)]
pub struct Log {
    /// The store of the volume's pool.
    pub store: Arc<dyn Store>,
    /// The volume.
    pub volume: VolumeId,
    /// The volume's data key, in an encrypted pool.
    pub key: Option<DataKey>,
    /// Clock and randomness.
    pub env: Env,
}

/// How an append ended.
#[derive(Debug)]
pub enum Put {
    /// The record lies there.
    Done,
    /// Another one does.
    Taken(Record),
}

impl Log {
    /// Reads record `number`; `None` if nothing is there.
    pub async fn get(&self, number: RecordNumber, deadline: Instant) -> Result<Option<Record>, LogError> {
        let key = layout::record(self.volume, number);
        match self.retry(deadline, || self.store.get(&key)).await {
            Ok(bytes) => {
                Ok(Some(codec::decode_record(&bytes, self.volume, number, self.key.as_ref())?.record))
            }
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Puts an encoded record at `number` unless another one is there.
    pub async fn put(
        &self,
        number: RecordNumber,
        id: ObjectId,
        body: Bytes,
        deadline: Instant,
    ) -> Result<Put, LogError> {
        let key = layout::record(self.volume, number);
        let mut backoff = Backoff::default();
        loop {
            match self.store.put_if_absent(&key, body.clone()).await {
                Ok(()) => return Ok(Put::Done),
                Err(StoreError::AlreadyExists { .. }) => match self.get(number, deadline).await? {
                    Some(found) if found.id == id => return Ok(Put::Done),
                    Some(found) => return Ok(Put::Taken(found)),
                    // Collected between the two calls: whoever continues from here is far behind.
                    None => return Err(LogError::Overtaken { volume: self.volume, number }),
                },
                Err(error @ StoreError::Unavailable { .. }) => {
                    if Instant::now() >= deadline {
                        return Err(error.into());
                    }
                    backoff.pause(&self.env).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The roots, oldest first.
    pub async fn roots(&self, deadline: Instant) -> Result<Vec<(RecordNumber, Listed)>, LogError> {
        let prefix = layout::roots(self.volume);
        let listed = self.list(&prefix, deadline).await?;
        Ok(listed.into_iter().filter_map(|l| Some((layout::number_in(&l.key)?, l))).collect())
    }

    /// The number of the newest root; `None` if there is none.
    pub async fn newest_root(&self, deadline: Instant) -> Result<Option<RecordNumber>, LogError> {
        Ok(self.roots(deadline).await?.last().map(|(number, _)| *number))
    }

    /// Reads the root at `number`; `None` if it is gone.
    pub async fn root(&self, number: RecordNumber, deadline: Instant) -> Result<Option<Root>, LogError> {
        let key = layout::root(self.volume, number);
        match self.retry(deadline, || self.store.get(&key)).await {
            Ok(bytes) => Ok(Some(codec::decode_root(&bytes, self.volume, number, self.key.as_ref())?)),
            Err(StoreError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Everything below `prefix`, in key order.
    pub(crate) async fn list(&self, prefix: &str, deadline: Instant) -> Result<Vec<Listed>, LogError> {
        let mut all: Vec<Listed> = Vec::new();
        loop {
            let after = all.last().map(|listed| listed.key.clone());
            let page = self.retry(deadline, || self.store.list(prefix, after.as_deref(), LIST_PAGE)).await?;
            let complete = page.len() < LIST_PAGE;
            all.extend(page);
            if complete {
                return Ok(all);
            }
        }
    }

    /// What a listed segment says of itself, or why that cannot be told; its data are not read. None if it is gone.
    pub(crate) async fn segment_table(
        &self,
        listed: &Listed,
        deadline: Instant,
    ) -> Result<Option<Result<SegmentTable, CodecError>>, StoreError> {
        let Some(id) = layout::object_id_in(&listed.key) else { return Ok(None) };
        let name = ObjectName::ById { kind: ObjectKind::Segment, volume: self.volume, id };
        let get = async |end: u64| {
            let range = 0..end.min(listed.size_bytes);
            match self.retry(deadline, || self.store.get_range(&listed.key, range.clone())).await {
                Err(StoreError::NotFound { .. }) => Ok(None),
                read => read.map(Some),
            }
        };
        let Some(mut bytes) = get(TABLE_BYTES).await? else { return Ok(None) };
        match Envelope::decode(name, &bytes) {
            Ok(envelope) if envelope.body_end() > bytes.len() as u64 => {
                let Some(whole) = get(envelope.body_end()).await? else { return Ok(None) };
                bytes = whole;
            }
            Ok(_) => {}
            Err(error) => return Ok(Some(Err(error))),
        }
        Ok(Some(codec::decode_segment_table(&bytes, self.volume, id, self.key.as_ref())))
    }

    /// Puts an object that nobody else puts otherwise: what is there already comes from an attempt whose reply was lost,
    /// or says the same.
    pub(crate) async fn put_own(&self, key: &str, body: &Bytes, deadline: Instant) -> Result<(), StoreError> {
        match self.retry(deadline, || self.store.put_if_absent(key, body.clone())).await {
            Ok(()) | Err(StoreError::AlreadyExists { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Tries an idempotent request until it is answered or the deadline has passed.
    pub(crate) async fn retry<T, F>(
        &self,
        deadline: Instant,
        attempt: impl FnMut() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        retry(&self.env, deadline, attempt).await
    }
}
