//! The ceph.conf of a cluster on one machine: small, quick to notice a fault, quick to recover.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::Path,
};

/// What differs between two clusters.
pub(super) struct Configuration<'a> {
    pub root: &'a Path,
    pub cluster: String,
    pub monitor_port: u16,
    pub gateway_port: u16,
    pub gateway_addresses: Vec<IpAddr>,
}

impl Configuration<'_> {
    /// The monitor's address, as monmaptool wants it.
    pub fn monitor_address(&self) -> String {
        format!("[v2:127.0.0.1:{}]", self.monitor_port)
    }
}

impl fmt::Display for Configuration<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let root = self.root.display();
        let endpoints = self
            .gateway_addresses
            .iter()
            .map(|address| format!(" endpoint={}", SocketAddr::new(*address, self.gateway_port)))
            .collect::<String>();
        write!(
            f,
            "[global]
fsid = {cluster}
mon_host = {monitor}
mon_initial_members = a
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_ipv6 = false
auth_allow_insecure_global_id_reclaim = false
run_dir = {root}/run
admin_socket = {root}/run/$name.$pid.asok
log_file = {root}/log/$name.log
mon_cluster_log_file = {root}/log/cluster.log
crash_dir = {root}/log
keyring = {root}/keyring
debug_ms = 0/0
osd_pool_default_size = 3
osd_pool_default_min_size = 2
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
# A killed OSD is noticed within seconds, and never given up during a test.
osd_heartbeat_interval = 1
osd_heartbeat_grace = 4
mon_osd_min_down_reporters = 1
mon_osd_adjust_heartbeat_grace = false
mon_osd_down_out_interval = 600
osd_recovery_sleep = 0
osd_recovery_sleep_hdd = 0
osd_recovery_max_active = 16
osd_max_backfills = 8
mon_max_pg_per_osd = 1000
mon_allow_pool_delete = true
mon_warn_on_pool_no_redundancy = false
# A full disk of the machine is the machine's concern.
mon_data_avail_warn = 1
mon_data_avail_crit = 1
[mon]
mon_data = {root}/mon
[mgr]
mgr_data = {root}/mgr
mgr_initial_modules =
[osd]
osd_data = {root}/osd$id
osd_objectstore = bluestore
osd_memory_target = 939524096
bluestore_cache_autotune = false
bluestore_cache_size = 67108864
bluestore_block_size = 8589934592
bluestore_block_create = true
bluestore_fsck_on_mount = false
osd_max_object_size = 134217728
[client.rgw.a]
rgw_frontends = beast{endpoints} tcp_nodelay=1
rgw_thread_pool_size = 64
rgw_data = {root}/rgw
rgw_override_bucket_index_max_shards = 1
rgw_dynamic_resharding = false
",
            cluster = self.cluster,
            monitor = self.monitor_address(),
        )
    }
}
