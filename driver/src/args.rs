//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

/// Where the pools are.
#[derive(Debug, Clone, Args)]
pub struct PoolArgs {
    /// Directory of the pools' files, NAME.yaml each.
    #[arg(long)]
    pub pools_dir: PathBuf,
    /// Directory of the archive targets' files, NAME.yaml each.
    #[arg(long)]
    pub targets_dir: PathBuf,
    /// A directory that pools with file:// URLs must lie below; may be repeated. Without it every directory is
    /// allowed.
    #[arg(long = "file-root")]
    pub file_roots: Vec<PathBuf>,
}

/// What the controller and the node plugin have in common.
#[derive(Debug, Clone, Args)]
pub struct CommonArgs {
    /// The CSI socket: unix:///path/to/csi.sock. The kubelet dials the node plugin's at this very path, whose last
    /// part then needs an `@`.
    #[arg(long)]
    pub endpoint: String,
    /// The pools.
    #[command(flatten)]
    pub pools: PoolArgs,
    /// Address of the liveness probe and of the list of loaded pools.
    #[arg(long)]
    pub health_addr: SocketAddr,
    /// Address of the metrics.
    #[arg(long)]
    pub metrics_addr: SocketAddr,
    /// Directory with ca.crt, tls.crt and tls.key for calls from the controller to nodes. Without it a snapshot of an
    /// attached volume cannot be taken.
    #[arg(long)]
    pub tls_dir: Option<PathBuf>,
}

/// The arguments of the controller.
#[derive(Debug, Clone, Args)]
pub struct ControllerArgs {
    /// Common ones.
    #[command(flatten)]
    pub common: CommonArgs,
}

/// The arguments of the node plugin.
#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// Common ones.
    #[command(flatten)]
    pub common: CommonArgs,
    /// The node's name in Kubernetes.
    #[arg(long)]
    pub node_id: String,
    /// Where the controller reaches this process: IP:PORT.
    #[arg(long)]
    pub node_addr: SocketAddr,
    /// The kubelet's directory.
    #[arg(long, default_value = "/var/lib/kubelet")]
    pub kubelet_dir: PathBuf,
    /// Directory for the cache, journals and records of mounts; survives the pod.
    #[arg(long)]
    pub state_dir: PathBuf,
    /// The keeper's socket.
    #[arg(long)]
    pub keeper_socket: PathBuf,
    /// Bytes of the read cache on disk; 0 for none.
    #[arg(long, default_value_t = 10 << 30)]
    pub cache_bytes: u64,
    /// Seconds that I/O of volumes waits for a store that is away before it fails, counted from the beginning of the
    /// outage.
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u64).range(1..))]
    pub outage_seconds: u64,
    /// Bytes per second that all restored volumes together are copied with from their archives; 0 for no limit. What
    /// they read is not limited.
    #[arg(long, default_value_t = 0)]
    pub hydrate_bytes_per_second: u64,
    /// Bytes of each volume's buffer for writes that are not yet in the store.
    #[arg(long, default_value_t = 96 << 20)]
    pub dirty_bytes: usize,
    /// Bytes of the dirty buffers of all volumes together. Each volume may have 2 MiB beyond that.
    #[arg(long, default_value_t = 192 << 20)]
    pub dirty_total_bytes: u64,
    /// Directory for the journals of volumes with `durability: journal`, on a disk that survives a loss of power.
    /// Below the state directory if it is not given.
    #[arg(long)]
    pub journal_dir: Option<PathBuf>,
    /// Bytes of each journal. Best twice the dirty buffer, which one full of small flushes takes.
    #[arg(long, default_value_t = 208 << 20)]
    pub journal_bytes: u64,
}
