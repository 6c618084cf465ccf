//! Loop devices that a deleted cluster leaves attached.
//!
//! Loop devices belong to the kernel, not to a container: when a node is deleted with volumes in use, theirs stay
//! attached to files of FUSE mounts that are gone. Which are ours is told by the device number of these mounts,
//! read from the nodes' mount tables while they run; it is never guessed from a path.

use std::{collections::BTreeSet, time::Duration};

use crate::process::Cmd;

use super::Cluster;

/// A node that hangs is not waited for.
const TABLES_LIMIT: Duration = Duration::from_secs(15);

/// The loop devices that the volumes of a cluster use.
pub(super) struct Leftovers {
    devices: Vec<String>,
}

impl Leftovers {
    /// Looks at the running nodes. A node that does not answer has nothing that could be told.
    pub(super) fn of(cluster: &Cluster) -> Self {
        let mut mounts = BTreeSet::new();
        for node in cluster.nodes() {
            let tables = cluster
                .exec(&node)
                .args(["sh", "-c", "cat /proc/[0-9]*/mountinfo 2>/dev/null"])
                .limit(TABLES_LIMIT)
                .cleanup()
                .output();
            mounts.extend(tables.iter().flat_map(|tables| fuse_mounts(&tables.stdout)));
        }
        let list = match mounts.is_empty() {
            true => String::new(),
            false => Cmd::new("losetup")
                .args(["--list", "--noheadings", "--raw", "--output", "NAME,BACK-MAJ:MIN"])
                .cleanup()
                .read()
                .unwrap_or_default(),
        };
        Leftovers { devices: loops_on(&list, &mounts) }
    }

    /// Detaches them, after the cluster is gone. One that was detached in between is no concern.
    pub(super) fn detach(self) {
        for device in self.devices {
            let _ = Cmd::new("losetup").args(["--detach", &device]).cleanup().run();
        }
    }
}

/// The device numbers, as `major:minor`, of the FUSE mounts in a mount table (proc_pid_mountinfo(5)).
fn fuse_mounts(table: &str) -> BTreeSet<String> {
    table
        .lines()
        .filter_map(|line| {
            let (mount, file_system) = line.split_once(" - ")?;
            let kind = file_system.split(' ').next()?;
            let is_fuse = kind == "fuse" || kind.starts_with("fuse.");
            is_fuse.then(|| mount.split(' ').nth(2).map(str::to_owned)).flatten()
        })
        .collect()
}

/// The loop devices of `losetup`'s list whose files are on one of these mounts.
fn loops_on(list: &str, mounts: &BTreeSet<String>) -> Vec<String> {
    list.lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(_, device)| mounts.contains(device.trim()))
        .map(|(name, _)| name.to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loops_on_the_clusters_own_mounts_are_taken() {
        let table = "36 35 98:0 / /data rw - ext4 /dev/root rw\n\
                     40 35 0:77 / /var/lib/v1 rw shared:3 - fuse.holdfast holdfast rw\n\
                     41 35 0:30 / /sys/fs/fuse/connections rw - fusectl fusectl rw\n";
        let mounts = fuse_mounts(table);
        assert_eq!(mounts, BTreeSet::from(["0:77".to_owned()]));
        assert_eq!(loops_on("/dev/loop3   0:77\n/dev/loop4   98:0\n", &mounts), ["/dev/loop3"]);
    }
}
