//! What all processes share: the objects in the store, the weather, and the trace of what happened.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use holdfast_engine::codec::{self, DataKey, ENVELOPE_BYTES};
use holdfast_engine::ids::{GrantId, ObjectId, RecordNumber, VolumeId};
use holdfast_engine::log::{Control, Op};
use holdfast_engine::pool::layout;
use holdfast_engine::store::{Listed, StoreError};
use tokio::time::Instant;

use crate::chance::{BEGINS_MS, Chance};
use crate::faults::Faults;

#[derive(Debug, Clone)]
pub struct Object {
    pub body: Bytes,
    pub modified_ms: u64,
}

/// A place in the store: the cluster's pool, or the archive target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bucket {
    Pool,
    Target,
}

impl Bucket {
    pub const ALL: [Self; 2] = [Self::Pool, Self::Target];
}

type Objects = BTreeMap<String, Object>;

#[derive(Debug)]
pub struct World {
    objects: [Mutex<Objects>; 2],
    faults: Mutex<Faults>,
    pub chance: Chance,
    pub start: Instant,
    trace: Mutex<Trace>,
    truths: Mutex<BTreeMap<VolumeId, Truth>>,
    /// What was encoded under each id, by its kind, volume and id: a hash.
    encoded: Mutex<BTreeMap<Vec<u8>, u64>>,
    violations: Mutex<Vec<String>>,
}

/// What the log of a volume says, to somebody who has seen every record land, also those that are gone.
#[derive(Debug, Default)]
struct Truth {
    key: Option<DataKey>,
    control: Control,
    /// Where the last record lies.
    last: RecordNumber,
    /// Where the records lie that took effect.
    effective: BTreeMap<ObjectId, RecordNumber>,
    /// Where the newest record lies that ended a session.
    ended: RecordNumber,
    /// Up to which number the log has the entries of the buffer, by grant.
    completed: BTreeMap<GrantId, u64>,
}

impl Truth {
    /// A record lands. At a number that was emptied, or on a state that it is not legal on, it is without effect.
    fn landed(&mut self, volume: VolumeId, number: RecordNumber, body: &Bytes) {
        let decoded = codec::decode_record(body, volume, number, self.key.as_ref());
        let record = decoded.expect("only the engine's own records land").record;
        if number != self.last.next() {
            return;
        }
        self.last = number;
        let grant = self.control.grant.as_ref().map(|grant| grant.id);
        if self.control.apply(&record).is_ok() {
            if let Some(grant) = grant {
                let completed = self.completed.entry(grant).or_default();
                *completed = record.buffer_complete.max(*completed);
            }
            self.effective.insert(record.id, number);
            let ends = |op: &Op| matches!(op, Op::Open { .. } | Op::Revoke { .. } | Op::Grant { .. });
            if record.ops.iter().any(ends) {
                self.ended = number;
            }
        }
    }
}

/// A hash over everything that happened, in order.
#[derive(Debug)]
struct Trace {
    hash: u64,
    events: u64,
    prints: bool,
}

impl World {
    pub fn new(chance: Chance, faults: Faults, prints: bool) -> Self {
        let trace = Trace { hash: 0xcbf2_9ce4_8422_2325, events: 0, prints };
        Self {
            objects: Default::default(),
            faults: Mutex::new(faults),
            chance,
            start: Instant::now(),
            trace: Mutex::new(trace),
            truths: Mutex::default(),
            encoded: Mutex::default(),
            violations: Mutex::default(),
        }
    }

    fn objects(&self, bucket: Bucket) -> MutexGuard<'_, Objects> {
        self.objects[bucket as usize].lock().expect("no holder panics")
    }

    fn truths(&self) -> MutexGuard<'_, BTreeMap<VolumeId, Truth>> {
        self.truths.lock().expect("no holder panics")
    }

    pub fn faults(&self) -> Faults {
        *self.faults.lock().expect("no holder panics")
    }

    pub fn set_faults(&self, faults: Faults) {
        *self.faults.lock().expect("no holder panics") = faults;
    }

    /// Notes an event.
    pub fn note(&self, event: fmt::Arguments<'_>) {
        let line = format!("{:>10} ms  {event}", self.start.elapsed().as_millis());
        let mut trace = self.trace.lock().expect("no holder panics");
        trace.events += 1;
        for byte in line.bytes() {
            trace.hash = (trace.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if trace.prints {
            println!("{line}");
        }
    }

    /// The hash of the trace, and how many events it has.
    pub fn trace(&self) -> (u64, u64) {
        let trace = self.trace.lock().expect("no holder panics");
        (trace.hash, trace.events)
    }

    /// What is wrong with the store's content.
    pub fn violations(&self) -> Vec<String> {
        self.violations.lock().expect("no holder panics").clone()
    }

    /// An id decides the key that an object is encrypted under: two objects under one would betray both. So what is
    /// put under it is the same always, also when the put fails.
    fn check_identity(&self, key: &str, body: &Bytes) {
        let is_encoded = ["/seg/", "/log/", "/map/", "/root/"].iter().any(|part| key.contains(part));
        let Some(envelope) = body.first_chunk::<ENVELOPE_BYTES>().filter(|_| is_encoded) else { return };
        let identity = [&envelope[..8], &envelope[20..52]].concat();
        let mut hasher = DefaultHasher::new();
        (key, body).hash(&mut hasher);
        let hash = hasher.finish();
        let mut encoded = self.encoded.lock().expect("no holder panics");
        if *encoded.entry(identity).or_insert(hash) != hash {
            let violation = format!("{key} is put under an id that something else was put under");
            self.violations.lock().expect("no holder panics").push(violation);
        }
    }

    /// What the clock says that is right.
    pub fn now_ms(&self) -> u64 {
        BEGINS_MS + self.start.elapsed().as_millis() as u64
    }

    pub fn put(&self, bucket: Bucket, key: &str, body: &Bytes) -> Result<(), StoreError> {
        self.check_identity(key, body);
        let modified_ms = self.now_ms();
        match self.objects(bucket).entry(key.into()) {
            std::collections::btree_map::Entry::Occupied(_) => {
                return Err(StoreError::AlreadyExists { key: key.into() });
            }
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(Object { body: body.clone(), modified_ms });
            }
        }
        if let Some(volume) = layout::volume_in(key)
            && key.starts_with(&layout::records(volume))
            && let Some(number) = layout::number_in(key)
            && let Some(truth) = self.truths().get_mut(&volume)
        {
            truth.landed(volume, number, body);
        }
        Ok(())
    }

    pub fn get(&self, bucket: Bucket, key: &str) -> Result<Bytes, StoreError> {
        let objects = self.objects(bucket);
        let found = objects.get(key).ok_or_else(|| StoreError::NotFound { key: key.into() })?;
        Ok(found.body.clone())
    }

    pub fn delete(&self, bucket: Bucket, key: &str) {
        self.objects(bucket).remove(key);
    }

    pub fn list(&self, bucket: Bucket, prefix: &str) -> BTreeMap<String, Listed> {
        let objects = self.objects(bucket);
        let found = objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        found
            .map(|(key, object)| {
                let size_bytes = object.body.len() as u64;
                (key.clone(), Listed { key: key.clone(), size_bytes, modified_ms: object.modified_ms })
            })
            .collect()
    }

    /// The volumes of which something lies in the bucket.
    pub fn volumes(&self, bucket: Bucket) -> BTreeSet<VolumeId> {
        self.objects(bucket).keys().filter_map(|key| layout::volume_in(key)).collect()
    }

    /// From now on keeps track of the log of a volume in the pool, of which everything is still there.
    pub fn watch(&self, volume: VolumeId, key: Option<DataKey>) {
        let mut truth = Truth { key, ..Truth::default() };
        for at in self.list(Bucket::Pool, &layout::records(volume)).into_keys() {
            if let (Some(number), Ok(body)) = (layout::number_in(&at), self.get(Bucket::Pool, &at)) {
                truth.landed(volume, number, &body);
            }
        }
        self.truths().insert(volume, truth);
    }

    /// Where in the log the record `id` lies, if it took effect.
    pub fn number_of(&self, volume: VolumeId, id: ObjectId) -> Option<RecordNumber> {
        self.truths().get(&volume)?.effective.get(&id).copied()
    }

    /// Up to which number the log of a volume has had the entries of the buffer under a grant.
    pub fn completed(&self, volume: VolumeId, grant: GrantId) -> u64 {
        self.truths().get(&volume).and_then(|truth| truth.completed.get(&grant).copied()).unwrap_or_default()
    }

    /// Whether a grant is in force.
    pub fn is_held(&self, volume: VolumeId, grant: GrantId) -> bool {
        let truths = self.truths();
        let held = truths.get(&volume).and_then(|truth| truth.control.grant.as_ref());
        held.is_some_and(|held| held.id == grant)
    }

    /// Whether the record at `number` is one of those that are never deleted.
    pub fn is_kept(&self, volume: VolumeId, number: RecordNumber) -> bool {
        let key = layout::record(volume, number);
        let Ok(body) = self.get(Bucket::Pool, &key) else { return false };
        let truths = self.truths();
        let key = truths.get(&volume).and_then(|truth| truth.key.as_ref());
        codec::decode_record(&body, volume, number, key).is_ok_and(|decoded| decoded.record.is_kept())
    }

    /// Whether somebody has opened the volume, or taken it back, after the Open at `number`.
    pub fn ended_since(&self, volume: VolumeId, number: RecordNumber) -> bool {
        self.truths().get(&volume).is_some_and(|truth| truth.ended > number)
    }
}
