//! The kernel ends a node plugin that finds no more memory.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::common::eventually;
use crate::load::Load;
use crate::site::{MIB, Site};
use crate::{ALONE, for_a_while};

const KILLS: usize = 8;
/// What the limit is lowered by until nothing is left to reclaim.
const STEP_BYTES: u64 = 1 << 20;

/// A control group for memory, as a container has one. Version 1 or 2, whichever the machine has.
struct MemoryGroup {
    dir: PathBuf,
    is_v2: bool,
}

impl MemoryGroup {
    fn new() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let is_v2 = root.join("cgroup.controllers").exists();
        let parent = if is_v2 { root.to_owned() } else { root.join("memory") };
        if is_v2 {
            fs::write(parent.join("cgroup.subtree_control"), "+memory").unwrap();
        }
        let dir = parent.join(format!("holdfast-pressure-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        Self { dir, is_v2 }
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.join(name)).unwrap()
    }

    fn add(&self, pid: u32) {
        fs::write(self.dir.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    fn used_bytes(&self) -> u64 {
        let name = if self.is_v2 { "memory.current" } else { "memory.usage_in_bytes" };
        self.read(name).trim().parse().unwrap()
    }

    fn limit(&self, bytes: Option<u64>) -> io::Result<()> {
        let (name, none) = if self.is_v2 { ("memory.max", "max") } else { ("memory.limit_in_bytes", "-1") };
        fs::write(self.dir.join(name), bytes.map_or(none.into(), |bytes| bytes.to_string()))
    }

    /// How often the kernel has killed a process of it.
    fn kills(&self) -> u64 {
        let events = self.read(if self.is_v2 { "memory.events" } else { "memory.oom_control" });
        let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.unwrap().trim().parse().unwrap()
    }

    /// Leaves no room, until the kernel has killed somebody for it.
    fn squeeze(&self) {
        let before = self.kills();
        eventually("a kill for want of memory", || {
            // Version 1 refuses a limit below what it cannot reclaim; what is wanted next does not fit then.
            let _ = self.limit(Some(self.used_bytes().saturating_sub(STEP_BYTES)));
            self.kills() > before
        });
        self.limit(None).unwrap();
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let parent = self.dir.with_file_name("cgroup.procs");
        for pid in self.read("cgroup.procs").lines() {
            // One that has ended meanwhile is in no group.
            let _ = fs::write(&parent, pid);
        }
        fs::remove_dir(&self.dir).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_plugin_that_is_killed_for_want_of_memory_loses_nothing() {
    let _alone = ALONE.lock().await;
    let mut site = Site::start().await;
    let mut node = site.node("n1").await;
    let group = MemoryGroup::new();
    let load = Load::start(&mut site, &mut node, 256 * MIB).await;
    for kill in 0..KILLS {
        group.add(node.process.id());
        for_a_while(kill).await;
        tokio::task::block_in_place(|| group.squeeze());
        node.restart().await;
        assert!(load.goes_on(), "kill {kill} was noticed");
    }
    let ended = load.end();
    println!("{} kills for want of memory, 0 errors; {ended}", group.kills());
    ended.check(100);
    ended.detach_and_check(&mut site, &mut node).await;
}
