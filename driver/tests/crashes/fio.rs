//! fio that verifies what it has written, in rounds, until it is told to end.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// What fio saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub writes: u64,
    pub verifying_reads: u64,
    /// The longest that one request took.
    pub stall: Duration,
}

/// Rounds of fio.
pub struct Fio {
    stop: Arc<AtomicBool>,
    rounds: JoinHandle<Seen>,
}

impl Fio {
    /// Begins to load a raw device.
    pub fn start(device: &Path) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (device, ends) = (device.to_owned(), stop.clone());
        let rounds = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !ends.load(Ordering::Relaxed) {
                round(&device, &mut seen);
            }
            seen
        });
        Self { stop, rounds }
    }

    /// Whether no round has failed.
    pub fn goes_on(&self) -> bool {
        !self.rounds.is_finished()
    }

    /// Waits for the end of the round; fails if any failed.
    pub fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        self.rounds.join().unwrap()
    }
}

fn round(device: &Path, seen: &mut Seen) {
    let output = Command::new("fio")
        .args(["--name=crashes", "--direct=1", "--rw=randwrite", "--bs=4k", "--iodepth=16", "--fsync=64"])
        .args(["--ioengine=libaio", "--size=100%", "--time_based", "--runtime=8", "--verify=crc32c"])
        .args(["--verify_backlog=1024", "--verify_fatal=1", "--verify_state_save=0", "--output-format=json"])
        .arg(format!("--filename={}", device.display()))
        .output()
        .unwrap_or_else(|error| panic!("fio cannot be run ({error}): apt-get install fio"));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "fio: {text}{}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0);
    let ios = |kind: &str| job[kind]["total_ios"].as_u64().unwrap();
    seen.writes += ios("write");
    seen.verifying_reads += ios("read");
    let stalls_ns = ["read", "write"].map(|kind| job[kind]["clat_ns"]["max"].as_u64().unwrap());
    let sync_ns = job["sync"]["lat_ns"]["max"].as_u64().unwrap();
    seen.stall = seen.stall.max(Duration::from_nanos(stalls_ns[0].max(stalls_ns[1]).max(sync_ns)));
}
