//! What all processes share: the objects in the store, the weather, and the trace of what happened.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use holdfast_engine::log::{Log, Op};
use holdfast_engine::pool::layout;
use holdfast_engine::store::{Listed, StoreError};
use holdfast_engine::{codec, ids};
use tokio::time::Instant;

use crate::chance::{BEGINS_MS, Chance};
use crate::faults::Faults;

#[derive(Debug, Clone)]
pub struct Object {
    pub body: Bytes,
    pub modified_ms: u64,
}

#[derive(Debug)]
pub struct World {
    objects: Mutex<BTreeMap<String, Object>>,
    faults: Mutex<Faults>,
    pub chance: Chance,
    pub start: Instant,
    trace: Mutex<Trace>,
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
            objects: Mutex::default(),
            faults: Mutex::new(faults),
            chance,
            start: Instant::now(),
            trace: Mutex::new(trace),
        }
    }

    pub fn objects(&self) -> MutexGuard<'_, BTreeMap<String, Object>> {
        self.objects.lock().expect("no holder panics")
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

    pub fn put(&self, key: &str, body: &Bytes) -> Result<(), StoreError> {
        let modified_ms = BEGINS_MS + self.start.elapsed().as_millis() as u64;
        match self.objects().entry(key.into()) {
            std::collections::btree_map::Entry::Occupied(_) => {
                Err(StoreError::AlreadyExists { key: key.into() })
            }
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(Object { body: body.clone(), modified_ms });
                Ok(())
            }
        }
    }

    pub fn get(&self, key: &str) -> Result<Bytes, StoreError> {
        let objects = self.objects();
        let found = objects.get(key).ok_or_else(|| StoreError::NotFound { key: key.into() })?;
        Ok(found.body.clone())
    }

    pub fn delete(&self, key: &str) {
        self.objects().remove(key);
    }

    pub fn list(&self, prefix: &str) -> BTreeMap<String, Listed> {
        let objects = self.objects();
        let found = objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        found
            .map(|(key, object)| {
                let size_bytes = object.body.len() as u64;
                (key.clone(), Listed { key: key.clone(), size_bytes, modified_ms: object.modified_ms })
            })
            .collect()
    }

    /// Whether somebody has opened the volume since the session `id` was opened, seen by somebody who sees everything.
    pub fn reopened_since(&self, log: &Log, id: ids::SessionId) -> bool {
        let Some(opened) = self.number_of(log, id) else { return false };
        self.list(&layout::records(log.volume)).into_keys().any(|key| {
            let later = layout::number_in(&key).filter(|number| *number > opened);
            let decoded = later.zip(self.get(&key).ok()).and_then(|(number, body)| {
                codec::decode_record(&body, log.volume, number, log.key.as_ref()).ok()
            });
            decoded.is_some_and(|found| found.record.ops.iter().any(|op| matches!(op, Op::Open { .. })))
        })
    }

    /// Where in the log the record `id` lies, seen by somebody who sees everything.
    pub fn number_of(&self, log: &Log, id: ids::ObjectId) -> Option<ids::RecordNumber> {
        self.list(&layout::records(log.volume)).into_keys().find_map(|key| {
            let number = layout::number_in(&key)?;
            let body = self.get(&key).ok()?;
            let found = codec::decode_record(&body, log.volume, number, log.key.as_ref()).ok()?;
            (found.record.id == id).then_some(number)
        })
    }
}
