//! fio on something of this machine: a block device, a file, an image of Ceph.

use std::{path::Path, time::Duration};

use crate::{
    Error, Result, packages,
    process::{Cmd, Daemon},
};

/// What fio is pointed at: its engine, and how that finds the data.
#[derive(Debug, Clone)]
pub struct Target {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
}

/// A load.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// As fio's `--rw`.
    pub pattern: &'static str,
    /// Bytes of each request.
    pub block_bytes: u64,
    /// Requests under way together.
    pub depth: u32,
    /// The address range, in MiB.
    pub range_mib: u64,
    /// When it ends.
    pub end: End,
    /// An fsync after each write.
    pub fsync: bool,
}

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub enum End {
    /// After so many seconds.
    Seconds(u32),
    /// After so many MiB and an fsync, which counts.
    Mib(u64),
}

/// What fio saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// Requests a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes_per_s: f64,
    /// Half of the requests took no longer.
    pub p50: Duration,
    /// The longest that a request took.
    pub longest: Duration,
    /// Half of the fsyncs took no longer.
    pub sync_p50: Duration,
    /// Requests that failed.
    pub errors: u64,
}

impl Target {
    /// A file or a block device, past the page cache.
    pub fn path(path: &Path) -> Self {
        Target {
            arguments: vec![
                "--ioengine=libaio".into(),
                "--direct=1".into(),
                format!("--filename={}", path.display()),
            ],
            environment: Vec::new(),
        }
    }

    /// An image of Ceph, through librbd.
    pub fn rbd(ceph_conf: &Path, pool: &str, image: &str) -> Self {
        Target {
            arguments: vec![
                "--ioengine=rbd".into(),
                "--clientname=admin".into(),
                format!("--pool={pool}"),
                format!("--rbdname={image}"),
            ],
            environment: vec![("CEPH_CONF".into(), ceph_conf.display().to_string())],
        }
    }
}

impl Load {
    /// Random requests of 4 KiB for some seconds.
    pub fn random(pattern: &'static str, depth: u32, range_mib: u64, seconds: u32) -> Self {
        Load { pattern, block_bytes: 4096, depth, range_mib, end: End::Seconds(seconds), fsync: false }
    }

    /// The whole range once, in requests of 1 MiB; a write ends with an fsync, which counts.
    pub fn sequential(pattern: &'static str, range_mib: u64) -> Self {
        Load { pattern, block_bytes: 1 << 20, depth: 8, range_mib, end: End::Mib(range_mib), fsync: false }
    }

    fn command(&self, target: &Target) -> Cmd {
        let mut command = Cmd::new("fio")
            .args(["--name=load", "--output-format=json", "--refill_buffers", "--norandommap"])
            .args(&target.arguments)
            .args([format!("--rw={}", self.pattern), format!("--bs={}", self.block_bytes)])
            .args([format!("--size={}M", self.range_mib), format!("--iodepth={}", self.depth)]);
        for (name, value) in &target.environment {
            command = command.env(name, value);
        }
        command = match self.end {
            End::Seconds(seconds) => command
                .args(["--time_based", &format!("--runtime={seconds}")])
                .limit(Duration::from_secs(u64::from(seconds) + 180)),
            End::Mib(mib) => command
                .args([format!("--io_size={mib}M"), "--end_fsync=1".into()])
                .limit(Duration::from_secs(600)),
        };
        if self.fsync { command.arg("--fsync=1") } else { command }
    }
}

/// Runs a load to its end.
pub fn run(target: &Target, load: &Load) -> Result<Measured> {
    packages::ensure("measuring", &["fio"])?;
    let output = load.command(target).run()?;
    measured(&output.stdout)
}

/// Starts a load in the background; its report goes to `report`.
pub fn start(target: &Target, load: &Load, report: &Path) -> Result<Daemon> {
    packages::ensure("measuring", &["fio"])?;
    load.command(target).spawn("fio", report)
}

/// Reads fio's report: the sum of reads and writes of its one job.
pub fn measured(report: &str) -> Result<Measured> {
    let answer = || Error::Answer { from: "fio".into(), answer: report.chars().take(2000).collect() };
    // Warnings come before the JSON.
    let json = report.find('{').map(|at| &report[at..]).ok_or_else(answer)?;
    let parsed: serde_json::Value = serde_json::from_str(json).map_err(|_| answer())?;
    let job = &parsed["jobs"][0];
    let of = |kind: &str, field: &str| job[kind][field].as_f64().unwrap_or_default();
    let sum = |field: &str| of("read", field) + of("write", field);
    let nanos = |value: &serde_json::Value| Duration::from_nanos(value.as_u64().unwrap_or_default());
    let larger = |path: fn(&serde_json::Value) -> &serde_json::Value| {
        nanos(path(&job["read"])).max(nanos(path(&job["write"])))
    };
    if job["error"].is_null() {
        return Err(answer());
    }
    Ok(Measured {
        iops: sum("iops"),
        bytes_per_s: sum("bw_bytes"),
        p50: larger(|kind| &kind["clat_ns"]["percentile"]["50.000000"]),
        longest: larger(|kind| &kind["clat_ns"]["max"]),
        sync_p50: nanos(&job["sync"]["lat_ns"]["percentile"]["50.000000"]),
        errors: job["total_err"].as_u64().unwrap_or_default() + u64::from(job["error"] != 0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_behind_warnings() {
        let report = r#"fio: a note
            {"jobs": [{"error": 0, "total_err": 2,
              "read": {"iops": 0.0, "bw_bytes": 0, "clat_ns": {"max": 0}},
              "write": {"iops": 1000.5, "bw_bytes": 4098048,
                        "clat_ns": {"max": 7000000, "percentile": {"50.000000": 90000}}},
              "sync": {"lat_ns": {"percentile": {"50.000000": 650000}}}}]}"#;
        let measured = measured(report).unwrap();
        assert_eq!((measured.iops, measured.bytes_per_s, measured.errors), (1000.5, 4_098_048.0, 2));
        assert_eq!((measured.p50, measured.longest), (Duration::from_micros(90), Duration::from_millis(7)));
        assert_eq!(measured.sync_p50, Duration::from_micros(650));
    }

    #[test]
    fn what_is_no_report_is_told() {
        assert!(matches!(measured("fio: no such file"), Err(Error::Answer { .. })));
    }
}
