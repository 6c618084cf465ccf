//! What befell the volumes of this node that people have to know of, for whoever asks: the driver itself talks to no API
//! server.
//!
//! # Crash behaviour
//! Incidents are in memory, and go with the process. They are in its log too, and counted.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_engine::env::Env;
use holdfast_engine::ids::ObjectId;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use serde::Serialize;

use crate::handles::VolumeHandle;

/// Incidents that are kept.
const KEPT: usize = 64;

/// Something that befell a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Incident {
    /// Its own id.
    pub id: String,
    /// The volume's handle.
    pub volume: String,
    /// What happened, as the reason of an event.
    pub reason: &'static str,
    /// The same for a person.
    pub message: String,
    /// When, in milliseconds since the Unix epoch.
    pub time_ms: u64,
}

#[derive(Debug, Default)]
struct State {
    kept: VecDeque<Incident>,
    dropped_bytes: u64,
}

/// The latest incidents of this process, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Incidents {
    state: Arc<Mutex<State>>,
}

impl Incidents {
    /// Notes that a volume was given up while up to `bytes` of answered writes were not in the store.
    pub fn writes_dropped(&self, env: &Env, volume: VolumeHandle, bytes: u64, why: &str) {
        tracing::warn!(%volume, bytes, why, "dropping writes that are not in the store");
        let message =
            format!("up to {bytes} bytes that were written and are not in the store are dropped: {why}");
        let incident = Incident {
            id: ObjectId::random(&*env.entropy).to_string(),
            volume: volume.to_string(),
            reason: "WritesDropped",
            message,
            time_ms: env.clock.now_ms(),
        };
        let mut state = self.state();
        state.dropped_bytes += bytes;
        state.kept.push_back(incident);
        if state.kept.len() > KEPT {
            state.kept.pop_front();
        }
    }

    /// The latest, oldest first.
    pub fn latest(&self) -> Vec<Incident> {
        self.state().kept.iter().cloned().collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Collector for Incidents {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Bytes of answered writes that were dropped with volumes that were taken from this node";
        let dropped = encoder.encode_descriptor("dropped_write_bytes", help, None, MetricType::Counter)?;
        ConstCounter::new(self.state().dropped_bytes).encode(dropped)
    }
}

#[cfg(test)]
mod tests {
    use holdfast_engine::ids::{PoolId, VolumeId};

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn the_latest_incidents_are_kept_and_all_bytes_are_counted() {
        let (incidents, metrics) = (Incidents::default(), Metrics::default());
        metrics.register(|registry| registry.register_collector(Box::new(incidents.clone())));
        let volume = VolumeHandle { pool: PoolId([1; 16]), volume: VolumeId([2; 16]) };
        for bytes in 1..=100 {
            incidents.writes_dropped(&Env::system(), volume, bytes, "it was detached");
        }
        let latest = incidents.latest();
        assert_eq!(latest.len(), KEPT);
        let last = latest.last().expect("one");
        assert_eq!((last.volume.as_str(), last.reason), (&*volume.to_string(), "WritesDropped"));
        assert!(last.message.contains("100 bytes") && last.message.contains("detached"), "{}", last.message);
        let text = metrics.encode().expect("text");
        assert!(text.contains("holdfast_dropped_write_bytes_total 5050"), "{text}");
    }
}
