//! What the read cache does, as metrics.

use std::fmt;
use std::sync::Arc;

use holdfast_engine::cache::{CacheStats, Count, Tiers, VolumeCacheStats};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::node::open::OpenVolume;
use crate::pool_metrics::OfVolume;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfTier {
    tier: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Hits {
    volume: String,
    tier: &'static str,
}

/// The cache that all volumes of a node share.
#[derive(Debug)]
pub struct CacheMetrics {
    /// It.
    pub cache: Arc<Tiers>,
}

impl Collector for CacheMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let memory = (OfTier { tier: "memory" }, self.cache.memory.stats());
        let disk = self.cache.disk.as_ref().map(|disk| (OfTier { tier: "disk" }, disk.stats()));
        let tiers: Vec<(OfTier, CacheStats)> = [memory].into_iter().chain(disk).collect();
        let help = "Bytes of chunks that the cache holds";
        let mut bytes = encoder.encode_descriptor("cache_bytes", help, None, MetricType::Gauge)?;
        for (labels, stats) in &tiers {
            let held_bytes = i64::try_from(stats.bytes).unwrap_or(i64::MAX);
            ConstGauge::new(held_bytes).encode(bytes.encode_family(labels)?)?;
        }
        type Part = fn(&CacheStats) -> u64;
        let counters: [(&str, &str, Part); 3] = [
            ("cache_evictions", "Chunks thrown out of the cache to make room", |stats| stats.evictions),
            (
                "cache_rejections",
                "Chunks that the cache did not take: too large, or its disk is behind or fails",
                |stats| stats.rejections,
            ),
            ("cache_errors", "Failures of the cache's disk, and chunks on it that were damaged", |stats| {
                stats.errors
            }),
        ];
        for (name, help, part) in counters {
            let mut counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (labels, stats) in &tiers {
                ConstCounter::new(part(stats)).encode(counter.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

/// What the cache has done for each volume.
pub fn encode_volumes(
    encoder: &mut DescriptorEncoder<'_>,
    volumes: &[Arc<OpenVolume>],
) -> Result<(), fmt::Error> {
    let counted = |volume: &Arc<OpenVolume>| (volume.handle.to_string(), volume.cache.stats());
    let volumes: Vec<(String, VolumeCacheStats)> = volumes.iter().map(counted).collect();
    type Part = fn(&Count) -> u64;
    let units: [([&str; 2], &str, Part); 2] = [
        (["volume_cache_hits", "volume_cache_misses"], "Chunks", |count| count.chunks),
        (["volume_cache_hit_bytes", "volume_cache_miss_bytes"], "Bytes of chunks", |count| count.bytes),
    ];
    for ([hits, misses], what, part) in units {
        let help = format!("{what} of a volume that were found in the cache");
        let mut hits = encoder.encode_descriptor(hits, &help, None, MetricType::Counter)?;
        for (volume, stats) in &volumes {
            for (tier, count) in [("memory", stats.memory_hits), ("disk", stats.disk_hits)] {
                let labels = Hits { volume: volume.clone(), tier };
                ConstCounter::new(part(&count)).encode(hits.encode_family(&labels)?)?;
            }
        }
        let help = format!("{what} of a volume that were got from its store to be read");
        let mut misses = encoder.encode_descriptor(misses, &help, None, MetricType::Counter)?;
        for (volume, stats) in &volumes {
            let labels = OfVolume { volume: volume.clone() };
            ConstCounter::new(part(&stats.misses)).encode(misses.encode_family(&labels)?)?;
        }
    }
    Ok(())
}
