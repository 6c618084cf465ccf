//! What goes to and from the stores, and what is open, as metrics.

use std::fmt;
use std::sync::Arc;

use holdfast_engine::pool::RequestKind;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

use crate::cache_metrics;
use crate::node::open::{OpenVolume, OpenVolumes};
use crate::pools::Pools;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    pool: String,
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPool {
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OfVolume {
    pub(crate) volume: String,
}

/// The requests that pools make of their stores.
#[derive(Debug)]
pub struct PoolMetrics {
    /// The pools.
    pub pools: Pools,
}

impl Collector for PoolMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let pools = self.pools.usable();
        let mut usable =
            encoder.encode_descriptor("pool_usable", "Whether a pool is open", None, MetricType::Gauge)?;
        for (pool, open) in &pools {
            let labels = OfPool { pool: pool.clone() };
            ConstGauge::new(i64::from(open.is_some())).encode(usable.encode_family(&labels)?)?;
        }
        let counts = || {
            pools.iter().filter_map(|(name, open)| Some((name, open.as_ref()?))).flat_map(|(name, pool)| {
                RequestKind::ALL.map(|kind| {
                    let labels = Request { pool: name.clone(), kind: kind.name().into() };
                    (labels, pool.requests(kind))
                })
            })
        };
        let help = "Requests made of stores, also failed ones";
        let mut requests = encoder.encode_descriptor("store_requests", help, None, MetricType::Counter)?;
        for (labels, counts) in counts() {
            ConstCounter::new(counts.requests).encode(requests.encode_family(&labels)?)?;
        }
        let help = "Requests that a store did not answer, refused, or had no room for";
        let mut failures =
            encoder.encode_descriptor("store_request_failures", help, None, MetricType::Counter)?;
        for (labels, counts) in counts() {
            ConstCounter::new(counts.failures).encode(failures.encode_family(&labels)?)?;
        }
        let help = "Bytes of objects put into stores or read from them";
        let mut bytes = encoder.encode_descriptor("store_object_bytes", help, None, MetricType::Counter)?;
        for (labels, counts) in counts() {
            ConstCounter::new(counts.bytes).encode(bytes.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// The volumes that are open on a node.
#[derive(Debug)]
pub struct VolumeMetrics {
    /// The volumes.
    pub volumes: Arc<OpenVolumes>,
}

impl VolumeMetrics {
    fn encode_journals(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        volumes: &[Arc<OpenVolume>],
    ) -> Result<(), fmt::Error> {
        let labels = |volume: &OpenVolume| OfVolume { volume: volume.handle.to_string() };
        let help = "Whether the flushes of a volume with durability journal end in its journal";
        let mut works = encoder.encode_descriptor("volume_journal_works", help, None, MetricType::Gauge)?;
        for volume in volumes {
            let Some(ends_there) = volume.journal_works() else { continue };
            ConstGauge::new(i64::from(ends_there)).encode(works.encode_family(&labels(volume))?)?;
        }
        let journals: Vec<_> =
            volumes.iter().filter_map(|volume| Some((labels(volume), volume.journal_waiting()?))).collect();
        let help = "Bytes in a volume's journal that are not yet in the store";
        let mut bytes = encoder.encode_descriptor("volume_journal_bytes", help, None, MetricType::Gauge)?;
        for (labels, waiting) in &journals {
            let waiting_bytes = i64::try_from(waiting.bytes).unwrap_or(i64::MAX);
            ConstGauge::new(waiting_bytes).encode(bytes.encode_family(labels)?)?;
        }
        let help = "How long the oldest of a volume's journal waits for the store";
        let unit = Some(&Unit::Seconds);
        let mut age = encoder.encode_descriptor("volume_journal_age", help, unit, MetricType::Gauge)?;
        for (labels, waiting) in &journals {
            ConstGauge::new(waiting.age.as_secs_f64()).encode(age.encode_family(labels)?)?;
        }
        let help = "Journals on this node that were set aside: their volumes were taken back too early";
        let aside = i64::try_from(self.volumes.journals_set_aside()).unwrap_or(i64::MAX);
        let encoder = encoder.encode_descriptor("journals_set_aside", help, None, MetricType::Gauge)?;
        ConstGauge::new(aside).encode(encoder)
    }
}

impl Collector for VolumeMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let volumes = self.volumes.all();
        let help = "Bytes written to a volume that are not yet in the store";
        let mut dirty = encoder.encode_descriptor("volume_dirty_bytes", help, None, MetricType::Gauge)?;
        for volume in &volumes {
            let Some(writer) = volume.writer() else { continue };
            let labels = OfVolume { volume: volume.handle.to_string() };
            ConstGauge::new(i64::try_from(writer.dirty_bytes()).unwrap_or(i64::MAX))
                .encode(dirty.encode_family(&labels)?)?;
        }
        self.encode_journals(&mut encoder, &volumes)?;
        encode_hydration(&mut encoder, &volumes)?;
        cache_metrics::encode_volumes(&mut encoder, &volumes)?;
        let help = "Seconds for which the store of a volume has been away and its I/O has waited; 0 while it answers";
        let mut away =
            encoder.encode_descriptor("volume_store_away_seconds", help, None, MetricType::Gauge)?;
        for volume in &volumes {
            let labels = OfVolume { volume: volume.handle.to_string() };
            let seconds = volume.away().map_or(0.0, |(since, _)| since.elapsed().as_secs_f64());
            ConstGauge::new(seconds).encode(away.encode_family(&labels)?)?;
        }
        let help = "Whether a volume's session is over and all its I/O fails";
        let mut over = encoder.encode_descriptor("volume_over", help, None, MetricType::Gauge)?;
        for volume in &volumes {
            let labels = OfVolume { volume: volume.handle.to_string() };
            let is_over = volume.writer().is_some_and(|writer| writer.check().is_err());
            ConstGauge::new(i64::from(is_over)).encode(over.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// How far restored volumes have been copied.
fn encode_hydration(
    encoder: &mut DescriptorEncoder<'_>,
    volumes: &[Arc<OpenVolume>],
) -> Result<(), fmt::Error> {
    let restored: Vec<_> = volumes
        .iter()
        .map(|volume| (OfVolume { volume: volume.handle.to_string() }, volume.hydration()))
        .filter(|(_, hydration)| hydration.total_bytes > 0)
        .collect();
    let help = "Bytes of a restored volume that lay in its archive when it was made";
    let mut total = encoder.encode_descriptor("volume_restored_bytes", help, None, MetricType::Gauge)?;
    for (labels, hydration) in &restored {
        let bytes = i64::try_from(hydration.total_bytes).unwrap_or(i64::MAX);
        ConstGauge::new(bytes).encode(total.encode_family(labels)?)?;
    }
    let help = "Bytes of a restored volume that are still to be copied from its archive";
    let mut left = encoder.encode_descriptor("volume_to_hydrate_bytes", help, None, MetricType::Gauge)?;
    for (labels, hydration) in &restored {
        let bytes = hydration.total_bytes.saturating_sub(hydration.hydrated_bytes);
        ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX)).encode(left.encode_family(labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use holdfast_engine::cache::MemoryCache;
    use holdfast_engine::env::Env;
    use holdfast_engine::pool::Access;

    use super::*;
    use crate::args::PoolArgs;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn requests_are_counted_by_pool_and_kind() {
        let dir = tempfile::tempdir().expect("a directory");
        let place = |name: &str| dir.path().join(name);
        for name in ["pool", "pools"] {
            std::fs::create_dir(place(name)).expect("made");
        }
        let text = format!("url: file://{}\n", place("pool").display());
        std::fs::write(place("pools").join("default.yaml"), text).expect("written");
        std::fs::write(place("pools").join("broken.yaml"), "colour: red\n").expect("written");
        let args =
            PoolArgs { pools_dir: place("pools"), targets_dir: place("targets"), file_roots: Vec::new() };
        let cache = Arc::new(MemoryCache::new(1 << 20));
        let pools = Pools::new(&args, Access::ReadWrite, cache, Env::system());
        pools.load().await;

        let metrics = Metrics::default();
        metrics.register(|registry| registry.register_collector(Box::new(PoolMetrics { pools })));
        let text = metrics.encode().expect("text");
        for line in [r#"holdfast_pool_usable{pool="default"} 1"#, r#"holdfast_pool_usable{pool="broken"} 0"#]
        {
            assert!(text.contains(line), "{line} is missing in {text}");
        }
        let puts = r#"holdfast_store_requests_total{pool="default",kind="put"} "#;
        let count = text.lines().find_map(|line| line.strip_prefix(puts)).expect(puts);
        assert!(count.parse::<u64>().expect("a number") > 0);
    }
}
