//! What all processes share: the objects in the store, the weather, and the trace of what happened.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use holdfast_engine::codec::{self, DataKey};
use holdfast_engine::ids::{ObjectId, RecordNumber, VolumeId};
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

#[derive(Debug)]
pub struct World {
    objects: Mutex<BTreeMap<String, Object>>,
    faults: Mutex<Faults>,
    pub chance: Chance,
    pub start: Instant,
    trace: Mutex<Trace>,
    truth: Mutex<Option<Truth>>,
}

/// What the log of a volume says, to somebody who has seen every record land, also those that are gone.
#[derive(Debug)]
struct Truth {
    volume: VolumeId,
    key: Option<DataKey>,
    control: Control,
    next: RecordNumber,
    /// Where the records lie that took effect.
    effective: BTreeMap<ObjectId, RecordNumber>,
    /// Where the newest record lies that ended a session.
    ended: RecordNumber,
}

impl Truth {
    /// A record lands. At a number that was emptied, or on a state that it is not legal on, it is without effect.
    fn landed(&mut self, number: RecordNumber, body: &Bytes) {
        let decoded = codec::decode_record(body, self.volume, number, self.key.as_ref());
        let record = decoded.expect("only the engine's own records land").record;
        if number != self.next {
            return;
        }
        self.next = number.next();
        if self.control.apply(&record).is_ok() {
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
            objects: Mutex::default(),
            faults: Mutex::new(faults),
            chance,
            start: Instant::now(),
            trace: Mutex::new(trace),
            truth: Mutex::default(),
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
                let mut truth = self.truth.lock().expect("no holder panics");
                if let Some(truth) = truth.as_mut()
                    && key.starts_with(&layout::records(truth.volume))
                    && let Some(number) = layout::number_in(key)
                {
                    truth.landed(number, body);
                }
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

    /// From now on keeps track of a volume's log, of which everything is still there.
    pub fn watch(&self, volume: VolumeId, key: Option<DataKey>) {
        let (control, next) = (Control::default(), RecordNumber(1));
        let mut truth =
            Truth { volume, key, control, next, effective: BTreeMap::new(), ended: RecordNumber(0) };
        for at in self.list(&layout::records(volume)).into_keys() {
            if let (Some(number), Ok(body)) = (layout::number_in(&at), self.get(&at)) {
                truth.landed(number, &body);
            }
        }
        *self.truth.lock().expect("no holder panics") = Some(truth);
    }

    /// Where in the log the record `id` lies, if it took effect.
    pub fn number_of(&self, id: ObjectId) -> Option<RecordNumber> {
        self.truth.lock().expect("no holder panics").as_ref()?.effective.get(&id).copied()
    }

    /// Whether somebody has opened the volume, or taken it back, after the Open at `number`.
    pub fn ended_since(&self, number: RecordNumber) -> bool {
        let truth = self.truth.lock().expect("no holder panics");
        truth.as_ref().is_some_and(|truth| truth.ended > number)
    }
}
