//! A store that goes away, and local disks that are full.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_csi_proto::csi::volume_capability::access_mode::Mode;
use holdfast_csi_proto::csi::{Volume, VolumeCondition};
use holdfast_engine::env::Env;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tokio::task::{JoinHandle, spawn_blocking};
use tonic::Code;

use crate::ALONE;
use crate::common::eventually;
use crate::site::{MIB, Node, Site, block, filesystem};

/// How long the tests wait for what is to happen.
const LIMIT: Duration = Duration::from_secs(60);

fn write(path: &Path, text: &str) -> JoinHandle<io::Result<()>> {
    let (path, text) = (path.to_owned(), text.to_owned());
    spawn_blocking(move || {
        let file = File::create(path)?;
        file.write_all_at(text.as_bytes(), 0)?;
        file.sync_all()
    })
}

#[repr(align(4096))]
struct Page([u8; 4096]);

/// Writes a block of a raw device, and has it made durable if asked.
fn write_block(device: &Path, byte: u8, durable: bool) -> JoinHandle<io::Result<()>> {
    let device = device.to_owned();
    spawn_blocking(move || {
        let device = File::options().write(true).custom_flags(libc::O_DIRECT).open(device)?;
        device.write_all_at(&Page([byte; 4096]).0, u64::from(byte) * 4096)?;
        if durable { device.sync_data() } else { Ok(()) }
    })
}

fn read_block(device: &Path, byte: u8) -> bool {
    let device = File::options().read(true).custom_flags(libc::O_DIRECT).open(device).unwrap();
    let mut page = Page([0; 4096]);
    device.read_exact_at(&mut page.0, u64::from(byte) * 4096).unwrap();
    page.0 == [byte; 4096]
}

/// Fills the beginning of a device with what does not compress.
fn fill(device: &Path, bytes: usize) -> Vec<u8> {
    let mut random = vec![0; bytes];
    Env::system().entropy.fill(&mut random);
    let disk = File::options().read(true).write(true).open(device).unwrap();
    disk.write_all_at(&random, 0).unwrap();
    disk.sync_all().unwrap();
    random
}

/// A pool whose store takes connections and never answers.
struct SilentPool {
    _store: std::net::TcpListener,
    file: PathBuf,
}

impl SilentPool {
    fn add_to(site: &Site) -> Self {
        let store = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = store.local_addr().unwrap();
        let credentials = "credentials: {accessKeyId: a, secretAccessKey: b}";
        let text = format!("url: s3://bucket\nendpoint: http://{endpoint}\nallowHttp: true\n{credentials}\n");
        let file = site.path("pools/silent.yaml");
        fs::write(&file, text).unwrap();
        Self { _store: store, file }
    }
}

/// Asks until the condition of the volume is as wanted.
async fn condition(node: &mut Node, volume: &Volume, abnormal: bool) -> VolumeCondition {
    let begun = Instant::now();
    loop {
        let found = node.condition(volume).await;
        if found.abnormal == abnormal {
            return found;
        }
        assert!(begun.elapsed() < LIMIT, "the condition stays {found:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn io_waits_for_a_store_that_is_away_also_across_a_restart_and_unstaging_says_so() {
    let _alone = ALONE.lock().await;
    let mut site = Site::start().await;
    let mut node = site.node("n1").await;
    let (files, disk) = (site.create("files", None).await, site.create("disk", None).await);
    let writer = filesystem(Mode::SingleNodeWriter);
    let contexts = [
        site.attach(&files, &node, &writer).await.unwrap(),
        site.attach(&disk, &node, &block()).await.unwrap(),
    ];
    let target = node.publish(&files, &contexts[0], &writer).await.unwrap();
    let device = node.publish(&disk, &contexts[1], &block()).await.unwrap();
    write(&target.join("before"), "before").await.unwrap().unwrap();

    let down = site.without_store();
    write_block(&device, 1, false).await.unwrap().expect("a write needs no store");
    let waiting = write(&target.join("during"), "during");
    let found = condition(&mut node, &files, true).await;
    assert!(found.message.contains("away") && found.message.contains("directory"), "{found:?}");
    let begun = Instant::now();
    let status = node.unpublish(&disk).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(begun.elapsed() < Duration::from_secs(45), "unstaging took {:?}", begun.elapsed());

    let ended = node.process.terminate();
    assert!(ended < Duration::from_secs(25), "SIGTERM took {ended:?}");
    node.start_again().await;
    let status = node.unstage(&disk).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(!waiting.is_finished(), "an fsync was answered without a store");

    drop(down);
    waiting.await.unwrap().unwrap();
    let begun = Instant::now();
    while let Err(status) = node.unstage(&disk).await {
        assert!(status.code() == Code::Unavailable && begun.elapsed() < LIMIT, "{status}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    condition(&mut node, &files, false).await;
    node.unpublish(&files).await.unwrap();
    let target = node.publish(&files, &contexts[0], &writer).await.unwrap();
    for name in ["before", "during"] {
        assert_eq!(fs::read_to_string(target.join(name)).unwrap(), name);
    }
    let device = node.publish(&disk, &contexts[1], &block()).await.unwrap();
    assert!(read_block(&device, 1));
    for volume in [&files, &disk] {
        node.unpublish(volume).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn io_fails_when_the_store_stays_away_and_nothing_that_was_answered_is_lost() {
    let _alone = ALONE.lock().await;
    let mut site = Site::start().await;
    let mut node = site.node_with("n1", &["--cache-bytes=0", "--outage-seconds=5"]).await;
    let volume = site.create("disk", None).await;
    let context = site.attach(&volume, &node, &block()).await.unwrap();
    let device = node.publish(&volume, &context, &block()).await.unwrap();
    write_block(&device, 1, true).await.unwrap().unwrap();

    let down = site.without_store();
    let begun = Instant::now();
    let failed = write_block(&device, 2, true).await.unwrap().unwrap_err();
    assert_eq!(failed.raw_os_error(), Some(libc::EIO));
    let waited = begun.elapsed();
    assert!((Duration::from_secs(5)..Duration::from_secs(30)).contains(&waited), "it waited {waited:?}");
    let begun = Instant::now();
    write_block(&device, 3, true).await.unwrap().unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(4), "the limit is the outage's, not each request's");

    drop(down);
    let begun = Instant::now();
    while write_block(&device, 4, true).await.unwrap().is_err() {
        assert!(begun.elapsed() < LIMIT, "the store is back, and I/O still fails");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    node.unpublish(&volume).await.unwrap();
    let device = node.publish(&volume, &context, &block()).await.unwrap();
    for byte in 1..=4 {
        assert!(read_block(&device, byte), "block {byte}");
    }
    node.unpublish(&volume).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_in_the_cache_is_read_without_the_store_after_a_kill() {
    let _alone = ALONE.lock().await;
    let mut site = Site::start().await;
    let mut node = site.node_with("n1", &["--cache-bytes=1000000000"]).await;
    let volume = site.create("warm", None).await;
    let context = site.attach(&volume, &node, &block()).await.unwrap();
    let device = node.publish(&volume, &context, &block()).await.unwrap();
    let random = fill(&device, 8 * MIB as usize);
    let of_volume = |name: &str, labels: &str| format!("{name}{{volume=\"{}\"{labels}}}", volume.volume_id);
    let misses = of_volume("holdfast_volume_cache_misses_total", "");
    let hits = of_volume("holdfast_volume_cache_hits_total", ",tier=\"disk\"");
    let gets = "holdfast_store_requests_total{pool=\"default\",kind=\"get\"}";
    let read = |device: &Path, range: std::ops::Range<usize>| {
        let mut found = vec![0; range.len()];
        File::open(device).unwrap().read_exact_at(&mut found, range.start as u64).unwrap();
        assert!(found == random[range], "something else was read");
    };

    // Published anew, so that the kernel holds nothing of it.
    node.unpublish(&volume).await.unwrap();
    let device = node.publish(&volume, &context, &block()).await.unwrap();
    read(&device, 0..random.len());
    assert!(node.metric(&misses) >= 128.0, "there are as many chunks as this");
    eventually("all of it in the cache on the disk", || {
        node.metric("holdfast_cache_bytes{tier=\"disk\"}") >= random.len() as f64
    });
    node.unpublish(&volume).await.unwrap();
    node.restart().await;
    let device = node.publish(&volume, &context, &block()).await.unwrap();
    // With it comes the page of the map, which is not kept on the disk.
    read(&device, 0..4096);
    let before = node.metric(gets);
    read(&device, 0..random.len());
    assert_eq!(node.metric(gets), before, "what is warm was got again");
    assert_eq!(node.metric(&misses), 0.0);
    assert!(node.metric(&hits) >= 128.0);
    node.unpublish(&volume).await.unwrap();
}

/// A file system in memory of a few MiB, unmounted in the end.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Self {
        fs::create_dir_all(&at).unwrap();
        mount("tmpfs", &at, "tmpfs", MountFlags::empty(), c"size=4m").unwrap();
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).expect("what was mounted can be unmounted");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_cache_disk_is_no_error_and_nothing_false_is_read() {
    let _alone = ALONE.lock().await;
    let mut site = Site::start().await;
    let _cache = SmallDisk::mount(site.path("n1/state/cache"));
    let mut node = site.node_with("n1", &["--cache-bytes=1000000000"]).await;
    let volume = site.create("disk", None).await;
    let context = site.attach(&volume, &node, &block()).await.unwrap();
    let device = node.publish(&volume, &context, &block()).await.unwrap();
    // What does not compress, and is more than the disk holds.
    let random = fill(&device, 32 * MIB as usize);
    for round in 0..3 {
        // A successor's memory is empty, and so is the kernel's after a publication anew.
        node.unpublish(&volume).await.unwrap();
        node.restart().await;
        let device = node.publish(&volume, &context, &block()).await.unwrap();
        let mut found = vec![0; random.len()];
        File::open(&device).unwrap().read_exact_at(&mut found, 0).unwrap();
        assert!(found == random, "something else was read in round {round}");
    }
    // Nothing but a full disk makes a cache of that capacity throw out what it holds.
    eventually("the cache at the end of its disk", || {
        node.metric("holdfast_cache_evictions_total{tier=\"disk\"}") >= 1.0
    });
    node.unpublish(&volume).await.unwrap();
}

/// As long as a successor would wait for the silent pool to be opened.
const SILENCE: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_does_not_answer_holds_up_no_volume_of_another_when_the_node_plugin_dies() {
    let _alone = ALONE.lock().await;
    let mut site = Site::start().await;
    let mut node = site.node("n1").await;
    let volume = site.create_sized("served", 16 * MIB).await;
    let context = site.attach(&volume, &node, &block()).await.unwrap();
    let device = node.publish(&volume, &context, &block()).await.unwrap();
    let silent = SilentPool::add_to(&site);
    node.process.kill();
    let written = write_block(&device, 7, true);
    let begun = Instant::now();
    let served = tokio::spawn(async move {
        written.await.unwrap().unwrap();
        begun.elapsed()
    });
    node.start_again().await;
    let waited = served.await.unwrap();
    assert!(waited < SILENCE, "a write waited for {waited:?}");
    assert!(begun.elapsed() >= SILENCE, "the other pool was not waited for");
    println!("the write waited for {waited:?}");
    fs::remove_file(&silent.file).unwrap();
    assert!(read_block(&device, 7));
    node.unpublish(&volume).await.unwrap();
    site.detach(&volume, &node).await;
}
