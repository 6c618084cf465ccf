//! The death of the node process: a child serves a volume and is killed; another goes on.
//!
//! The test binary starts itself as that child (its role is in the environment), so it has its own `main`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use common::engine::{open_slow_volume, open_volume};
use common::{LIMIT, Node, eventually, offload};
use holdfast_driver::frontend::memory::MemoryDevice;
use holdfast_driver::frontend::slots::{MAX_WRITE_BYTES, SLOT_COUNT};
use holdfast_driver::frontend::{BlockDevice, DeviceError, FrontEnd, Incarnation, Region};
use holdfast_driver::keeper::Link;
use holdfast_driver::keeper::protocol::Name;

const ROLE: &str = "HOLDFAST_TEST_ROLE";
const SIZE: usize = 256 << 20;
const KILLS: usize = 12;
/// The driver's own buffer for a volume.
const DIRTY_BYTES: usize = 32 << 20;
/// What the slow store takes in a second.
const SLOW_BYTES: u64 = 16 << 20;

fn main() -> ExitCode {
    match std::env::var(ROLE).as_deref() {
        Ok(role) => serve(role),
        Err(_) => run_all(),
    }
}

/// What a test harness does: runs the tests whose names match the arguments.
fn run_all() -> ExitCode {
    let tests: [(&str, fn()); 12] = [
        ("io_survives_kills_under_verifying_fio", io_survives_kills_under_verifying_fio),
        ("a_waiting_write_is_served_from_its_slot_without_resend", slot_without_resend),
        ("a_waiting_write_is_served_from_its_slot_with_resend", slot_with_resend),
        ("an_answered_request_in_a_slot_is_not_served_again", answered_slot),
        ("a_stack_without_a_loop_device_gets_one_when_adopted", missing_loop_device),
        ("a_volume_that_nobody_serves_holds_nobody_up", unserved_volume),
        ("a_request_that_no_slot_holds_is_sent_again", lost_request),
        ("a_restarted_keeper_hands_the_volume_on", restarted_keeper),
        ("what_keeper_and_node_process_left_dying_both_is_removed", both_dead),
        ("an_engine_volume_survives_kills_under_verifying_fio", engine_survives_kills),
        ("writes_that_were_not_flushed_survive_a_kill", unflushed_writes),
        ("memory_is_bounded_while_the_store_is_slower_than_the_load", slow_store),
    ];
    let filters: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let mut failed = false;
    for (name, test) in tests {
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let passed = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed |= !passed;
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// A device whose writes begin and never end.
struct Stuck(MemoryDevice);

#[async_trait]
impl BlockDevice for Stuck {
    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Vec<Bytes>, DeviceError> {
        self.0.read(offset, len).await
    }

    async fn write(&self, _offset: u64, _data: &[u8]) -> Result<(), DeviceError> {
        say("stuck");
        std::future::pending().await
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        self.0.discard(offset, len).await
    }

    async fn flush(&self) -> Result<(), DeviceError> {
        self.0.flush().await
    }
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).expect("the test reads our output");
}

/// The child: a node process with one volume. It says where the volume is and serves it until it is killed.
fn serve(role: &str) -> ExitCode {
    let dir = PathBuf::from(std::env::var("HOLDFAST_TEST_DIR").unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let _incarnation = Incarnation::begin(&dir, LIMIT).await.unwrap();
        let link = Link::connect(&dir.join("keeper.sock"), LIMIT).unwrap();
        let front_end = FrontEnd::new(dir.join("volumes"), link, offload());
        let region = match front_end.adopt_dirty_region("volume").await.unwrap() {
            Some((region, _)) => region,
            None => {
                let bytes = if role == "serve-slow" { DIRTY_BYTES } else { SIZE };
                front_end.create_dirty_region("volume", bytes, String::new()).await.unwrap()
            }
        };
        let device: Arc<dyn BlockDevice> = match role {
            "serve" => Arc::new(MemoryDevice::new(region)),
            "serve-stuck" => Arc::new(Stuck(MemoryDevice::new(region))),
            "serve-engine" => Arc::new(open_volume(&dir.join("pool"), SIZE as u64, region).await),
            "serve-slow" => {
                Arc::new(open_slow_volume(&dir.join("pool"), SLOW_BYTES, SIZE as u64, region).await)
            }
            _ => panic!("unknown role {role}"),
        };
        let stack = match front_end.saved("volume").await.unwrap() {
            Some(saved) => front_end.adopt(saved, device).await.unwrap(),
            None => front_end.create("volume", device, String::new()).await.unwrap(),
        };
        let counts = stack.counts();
        say(&format!("ready {} adopted {}", stack.loop_path().display(), counts.adopted));
        let wait = tokio::task::spawn_blocking(|| std::io::stdin().read(&mut [0]));
        wait.await.unwrap().unwrap();
        say(&format!("resent {}", stack.counts().resent));
        stack.teardown().await.unwrap();
    });
    ExitCode::SUCCESS
}

/// The child, seen from the test. Dropping it kills it.
struct NodeProcess {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl NodeProcess {
    fn start(node: &Node, role: &str) -> NodeProcess {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .env(ROLE, role)
            .env("HOLDFAST_TEST_DIR", node.path(""))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        NodeProcess { child, output }
    }

    fn next_line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert!(!line.is_empty(), "the node process ended");
        line.trim().to_owned()
    }

    /// Waits until the volume is served; returns its loop device and how many requests came from slots.
    fn ready(&mut self) -> (PathBuf, u64) {
        let line = self.next_line();
        let words: Vec<&str> = line.split(' ').collect();
        let ["ready", device, "adopted", adopted] = words[..] else { panic!("unexpected: {line}") };
        (device.into(), adopted.parse().unwrap())
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Has the volume removed in good order; returns how many requests the kernel had sent again.
    fn finish(mut self) -> u64 {
        drop(self.child.stdin.take());
        let line = self.next_line();
        assert!(self.child.wait().unwrap().success());
        line.strip_prefix("resent ").expect("the child's last words").parse().unwrap()
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn io_survives_kills_under_verifying_fio() {
    survive_kills("serve");
}

fn engine_survives_kills() {
    survive_kills("serve-engine");
}

fn survive_kills(role: &str) {
    let node = Node::start();
    let mut process = NodeProcess::start(&node, role);
    let (device, _) = process.ready();
    let fio = Command::new("fio")
        .args(["--name=takeover", "--direct=1", "--rw=randwrite", "--bs=4k", "--iodepth=16"])
        .args(["--ioengine=libaio", "--size=200m", "--time_based", "--runtime=12", "--verify=crc32c"])
        .args(["--verify_backlog=2048", "--verify_fatal=1", "--verify_state_save=0"])
        .arg("--output-format=json")
        .arg(format!("--filename={}", device.display()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (mut adopted, mut takeover) = (0, Duration::ZERO);
    for _ in 0..KILLS {
        // Time for the load to run; a kill must come at an arbitrary moment.
        std::thread::sleep(Duration::from_millis(600));
        let killed = Instant::now();
        process.kill();
        process = NodeProcess::start(&node, role);
        let (again, from_slots) = process.ready();
        assert_eq!(again, device);
        adopted += from_slots;
        takeover = takeover.max(killed.elapsed());
    }
    let output = fio.wait_with_output().unwrap();
    assert!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stdout));
    let resent = process.finish();

    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let job = &report["jobs"][0];
    assert_eq!(job["error"], 0);
    assert!(job["read"]["total_ios"].as_u64().unwrap() > 1_000, "fio verified too little");
    let stall_ns = ["read", "write"].map(|kind| job[kind]["clat_ns"]["max"].as_u64().unwrap());
    let stall = Duration::from_nanos(stall_ns[0].max(stall_ns[1]));
    println!(
        "{KILLS} kills, 0 errors, {} writes and {} verifying reads; longest stall {stall:?}, longest takeover \
         {takeover:?}; {adopted} requests served from slots, {resent} sent again to the last process",
        job["write"]["total_ios"], job["read"]["total_ios"],
    );
    assert!(stall < Duration::from_secs(5), "the longest stall was {stall:?}");
}

#[repr(align(4096))]
struct Page([u8; 4096]);

fn write_page(device: PathBuf, byte: u8, offset: u64) -> std::thread::JoinHandle<std::io::Result<()>> {
    std::thread::spawn(move || {
        let file = File::options().write(true).custom_flags(libc::O_DIRECT).open(device)?;
        file.write_all_at(&Page([byte; 4096]).0, offset)
    })
}

fn read_page(device: &PathBuf, offset: u64) -> [u8; 4096] {
    let file = File::options().read(true).custom_flags(libc::O_DIRECT).open(device).unwrap();
    let mut page = Page([0; 4096]);
    file.read_exact_at(&mut page.0, offset).unwrap();
    page.0
}

/// Kills a process that has taken a write and not answered it; the next one serves it from its slot.
fn slot_is_served(resend: bool) -> u64 {
    let node = Node::start();
    let mut first = NodeProcess::start(&node, "serve-stuck");
    let (device, _) = first.ready();
    let writer = write_page(device.clone(), 0x5a, 8192);
    assert_eq!(first.next_line(), "stuck");
    first.kill();
    if !resend {
        let link = node.link();
        let name = Name::new("volume", "stack");
        let entry = link.get(&name).unwrap().unwrap();
        let fds: Vec<_> = entry.fds.iter().map(AsFd::as_fd).collect();
        let metadata = entry.metadata.replace(r#""resend":true"#, r#""resend":false"#);
        assert_ne!(metadata, entry.metadata, "this kernel is older than 6.9; the replacement is not needed");
        link.put(name, metadata, &fds).unwrap();
    }
    let mut second = NodeProcess::start(&node, "serve");
    let (again, adopted) = second.ready();
    assert_eq!((again, adopted), (device.clone(), 1));
    eventually("the end of the waiting write", || writer.is_finished());
    writer.join().unwrap().unwrap();
    assert!(read_page(&device, 8192).iter().all(|&byte| byte == 0x5a));
    second.finish()
}

fn slot_without_resend() {
    assert_eq!(slot_is_served(false), 0);
}

fn slot_with_resend() {
    assert_eq!(slot_is_served(true), 0, "what was served from a slot is not sent again");
}

fn kept_slots(node: &Node) -> Region {
    let entry = node.link().get(&Name::new("volume", "stack")).unwrap().unwrap();
    Region::adopt(entry.fds.into_iter().next_back().unwrap()).unwrap()
}

/// Where the request of a slot begins.
fn request_offset(slot: usize) -> usize {
    let slot_bytes = 4096 + MAX_WRITE_BYTES;
    4096 + (slot + 1) * slot_bytes - 80 - MAX_WRITE_BYTES
}

/// What was taken from the kernel and lies in no slot comes again where the kernel can send it.
fn lost_request() {
    let node = Node::start();
    let mut first = NodeProcess::start(&node, "serve-stuck");
    let (device, _) = first.ready();
    let writer = write_page(device.clone(), 0x33, 4096);
    assert_eq!(first.next_line(), "stuck");
    first.kill();
    let slots = kept_slots(&node);
    for slot in 0..SLOT_COUNT {
        slots.write_at(request_offset(slot), &[0; 8]);
    }
    let mut second = NodeProcess::start(&node, "serve");
    assert_eq!(second.ready(), (device.clone(), 0));
    eventually("the end of the waiting write (needs Linux 6.9)", || writer.is_finished());
    writer.join().unwrap().unwrap();
    assert!(read_page(&device, 4096).iter().all(|&byte| byte == 0x33));
    assert_eq!(second.finish(), 1);
}

/// First the keeper dies and comes back, then the node process dies.
fn restarted_keeper() {
    let mut node = Node::start();
    let mut first = NodeProcess::start(&node, "serve");
    let (device, _) = first.ready();
    write_page(device.clone(), 0x21, 0).join().unwrap().unwrap();
    node.keeper.restart();
    write_page(device.clone(), 0x22, 0).join().unwrap().unwrap();
    let link = node.link();
    eventually("the return of the entries", || link.list().is_ok_and(|names| names.len() == 2));
    first.kill();
    let mut second = NodeProcess::start(&node, "serve");
    assert_eq!(second.ready().0, device);
    assert!(read_page(&device, 0).iter().all(|&byte| byte == 0x22));
    second.finish();
}

/// A process may die between a reply and the clearing of the slot. Were the write served again, it would undo
/// what was written to the same place since.
fn answered_slot() {
    let node = Node::start();
    let mut first = NodeProcess::start(&node, "serve");
    let (device, _) = first.ready();
    write_page(device.clone(), 0x77, 0).join().unwrap().unwrap();

    let slots = kept_slots(&node);
    let mut old = Vec::new();
    old.extend((40u32 + 40 + 4096).to_ne_bytes());
    old.extend(16u32.to_ne_bytes());
    for word in [4u64, 2, 0, 0, /* fuse_write_in */ 0, 0, 4096, 0, 0] {
        old.extend(word.to_ne_bytes());
    }
    old.resize(40 + 40, 0);
    old.resize(40 + 40 + 4096, 0x11);
    slots.write_at(request_offset(59), &old);
    first.kill();

    let mut second = NodeProcess::start(&node, "serve");
    assert_eq!(second.ready(), (device.clone(), 0));
    assert!(read_page(&device, 0).iter().all(|&byte| byte == 0x77));
    second.finish();
}

/// The process dies after the keeper knows the connection and before the loop device is there.
fn missing_loop_device() {
    let node = Node::start();
    let mut first = NodeProcess::start(&node, "serve");
    let (device, _) = first.ready();
    write_page(device.clone(), 0x42, 0).join().unwrap().unwrap();
    let number = holdfast_driver::loopdev::number_of(&device).unwrap();
    let backing = holdfast_driver::loopdev::backing_of(number).unwrap().unwrap();
    holdfast_driver::loopdev::detach(backing, false).unwrap();
    eventually("the removal", || holdfast_driver::loopdev::find(backing).unwrap().is_none());
    first.kill();

    let mut second = NodeProcess::start(&node, "serve");
    let (device, _) = second.ready();
    assert!(read_page(&device, 0).iter().all(|&byte| byte == 0x42));
    second.finish();
}

/// Loop devices are shared by all nodes of a machine; one whose node process is dead must not block the
/// others' search for theirs, nor the removal by force of its own.
fn unserved_volume() {
    let node = Node::start();
    let mut process = NodeProcess::start(&node, "serve");
    let (device, _) = process.ready();
    let number = holdfast_driver::loopdev::number_of(&device).unwrap();
    let backing = holdfast_driver::loopdev::backing_of(number).unwrap().unwrap();
    process.kill();
    let waiting = write_page(device, 0x01, 0);
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || sender.send(holdfast_driver::loopdev::find(backing)));
    assert_eq!(receiver.recv_timeout(LIMIT).expect("the search ends").unwrap(), Some(number));

    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        node.front_end().discard("volume").await.unwrap();
    });
    assert_eq!(waiting.join().unwrap().unwrap_err().raw_os_error(), Some(libc::EIO));
    eventually("the removal", || holdfast_driver::loopdev::find(backing).unwrap().is_none());
}

/// What was answered and not flushed lies in the dirty buffer only, which outlives the process.
fn unflushed_writes() {
    let node = Node::start();
    let mut first = NodeProcess::start(&node, "serve-engine");
    let (device, _) = first.ready();
    for page in 0..64 {
        write_page(device.clone(), page as u8 + 1, page * 8192).join().unwrap().unwrap();
    }
    first.kill();
    let mut second = NodeProcess::start(&node, "serve-engine");
    assert_eq!(second.ready().0, device);
    for page in 0..64 {
        let kept = read_page(&device, page * 8192).iter().all(|&byte| byte == page as u8 + 1);
        assert!(kept, "page {page} was lost");
    }
    second.finish();
}

/// The most memory that a process has had, in bytes.
fn peak_bytes(process: &Child) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
}

/// A load that the store cannot follow is held back, and does not gather in memory.
fn slow_store() {
    let node = Node::start();
    let mut process = NodeProcess::start(&node, "serve-slow");
    let (device, _) = process.ready();
    let before = peak_bytes(&process.child);
    let output = Command::new("fio")
        .args(["--name=slow", "--direct=1", "--rw=write", "--bs=1m", "--iodepth=64", "--ioengine=libaio"])
        .args(["--size=240m", "--loops=2", "--refill_buffers", "--output-format=json"])
        .arg(format!("--filename={}", device.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "fio: {}", String::from_utf8_lossy(&output.stdout));
    let grown = peak_bytes(&process.child) - before;
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let bytes_per_second = report["jobs"][0]["write"]["bw_bytes"].as_u64().unwrap();
    println!("{} MiB more memory at most, at {} KiB/s", grown >> 20, bytes_per_second >> 10);
    assert!(bytes_per_second < 2 * SLOW_BYTES, "the load was not held back");
    // The requests that wait, the buffer, the same data for reading, and the segments on their way that are made of it:
    // less than what was written.
    let bound = SLOT_COUNT * MAX_WRITE_BYTES + 8 * DIRTY_BYTES;
    assert!(grown < bound as u64, "memory has grown by {} MiB", grown >> 20);
    process.finish();
}

/// With both dead, I/O fails and nothing blocks; discarding removes all that is left.
fn both_dead() {
    let mut node = Node::start();
    let mut process = NodeProcess::start(&node, "serve");
    let (device, _) = process.ready();
    let number = holdfast_driver::loopdev::number_of(&device).unwrap();
    let backing = holdfast_driver::loopdev::backing_of(number).unwrap().unwrap();
    node.keeper.kill();
    process.kill();
    assert_eq!(write_page(device, 0x01, 0).join().unwrap().unwrap_err().raw_os_error(), Some(libc::EIO));
    node.keeper.restart();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async { node.front_end().discard("volume").await.unwrap() });
    assert_eq!(holdfast_driver::loopdev::find(backing).unwrap(), None);
    assert!(!node.path("volumes/volume").exists());
}
