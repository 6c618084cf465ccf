//! The two long-running roles: controller and node plugin.
//!
//! # Crash behaviour
//! Both may be killed at any time: what they do is idempotent, and what the node plugin serves survives in the keeper.
//! On SIGTERM running calls end, for a short time; volumes stay served by whoever comes next.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_csi_proto::csi::controller_server::ControllerServer;
use holdfast_csi_proto::csi::node_server::NodeServer;
use holdfast_engine::buffer::Budget;
use holdfast_engine::cache::{CacheError, DiskCache, MemoryCache, Tiers};
use holdfast_engine::env::Env;
use holdfast_engine::journal::{Journals, JournalsError, Patience};
use holdfast_engine::pool::Access;
use holdfast_engine::volume::Pace;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Server;

use crate::args::{CommonArgs, ControllerArgs, NodeArgs};
use crate::cache_metrics::CacheMetrics;
use crate::controller::ControllerService;
use crate::controller::pooled::{PooledStorage, tending};
use crate::frontend::incarnation::IncarnationError;
use crate::frontend::{FrontEnd, Incarnation};
use crate::health::{self, HttpError};
use crate::incidents::Incidents;
use crate::keeper::{Link, LinkError};
use crate::metrics::Metrics;
use crate::mount::SystemMounter;
use crate::node::NodeService;
use crate::node::open::{OpenVolumes, Parts};
use crate::node::records::{RecordError, Records};
use crate::offload::Offload;
use crate::owner::TlsFiles;
use crate::owner::client::Owners;
use crate::owner::server::{self, OwnerServerError};
use crate::owner::service::OwnerService;
use crate::pool_metrics::{PoolMetrics, VolumeMetrics};
use crate::pools::Pools;
use crate::registration::{self, RegistrationService};
use crate::rpc;
use crate::sockets::{self, SocketError};

/// How long a predecessor may take to die, and the keeper to appear.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long the pools may take to open before what a predecessor served is taken over.
const LOAD_LIMIT: Duration = Duration::from_secs(3);
/// How long calls may go on after SIGTERM.
const END_LIMIT: Duration = Duration::from_secs(20);
/// Rounds of garbage collection at once: each has some tens of MiB in memory.
const COLLECTIONS: usize = 4;
/// Memory for chunks.
const CHUNK_MEMORY_BYTES: u64 = 128 << 20;

/// Why a role has ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A Unix socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An HTTP address.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// A gRPC server broke off.
    #[error("serving gRPC failed: {0}")]
    Rpc(#[from] tonic::transport::Error),
    /// The server for the controller.
    #[error(transparent)]
    Owner(#[from] OwnerServerError),
    /// A predecessor lives on.
    #[error(transparent)]
    Incarnation(#[from] IncarnationError),
    /// The keeper.
    #[error(transparent)]
    Keeper(#[from] LinkError),
    /// The records of mounts.
    #[error(transparent)]
    Records(#[from] RecordError),
    /// The journals.
    #[error(transparent)]
    Journals(#[from] JournalsError),
    /// The read cache.
    #[error("the read cache: {0}")]
    Cache(#[from] CacheError),
    /// What a predecessor served.
    #[error("cannot take over what a predecessor served: {0}")]
    Adopt(Status),
    /// A directory or the system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> RunError {
    move |source| RunError::System { what: what.into(), source }
}

/// Runs the controller until SIGTERM.
pub async fn controller(args: ControllerArgs) -> Result<(), RunError> {
    let CommonArgs { endpoint, pools, health_addr, metrics_addr, tls_dir } = args.common;
    let stop = stop_on_signal()?;
    let metrics = Metrics::default();
    let cache = Arc::new(MemoryCache::new(CHUNK_MEMORY_BYTES));
    let pools = Pools::new(&pools, Access::ReadWrite, cache, Env::system());
    let counted = Box::new(PoolMetrics { pools: pools.clone() });
    metrics.register(|registry| registry.register_collector(counted));
    let owners = Owners::new(tls_dir.map(TlsFiles::new));
    let storage = PooledStorage::new(pools.clone(), owners);
    let listener = sockets::bind(&sockets::path_of(&endpoint)?)?;
    let services =
        rpc::identity().add_service(ControllerServer::new(ControllerService::new(Arc::new(storage))));
    pools.load().await;
    end_together(&stop, async {
        tokio::try_join!(
            async { Ok(rpc::serve(listener, services, metrics.clone(), stopped(&stop)).await?) },
            async {
                let health = health::health(pools.list(), Incidents::default());
                Ok(health::serve(health_addr, health, stopped(&stop)).await?)
            },
            async {
                Ok(health::serve(metrics_addr, health::metrics(metrics.clone()), stopped(&stop)).await?)
            },
            async {
                pools.watch(None, &stop).await;
                Ok(())
            },
            async {
                tending::tend(&pools, &stop).await;
                Ok(())
            },
        )
    })
    .await
}

/// Runs the node plugin until SIGTERM.
pub async fn node(args: NodeArgs) -> Result<(), RunError> {
    let NodeArgs {
        common,
        node_id,
        node_addr,
        kubelet_dir,
        state_dir,
        keeper_socket,
        cache_bytes,
        outage_seconds,
        hydrate_bytes_per_second,
        dirty_bytes,
        dirty_total_bytes,
        journal_dir,
        journal_bytes,
    } = args;
    let stop = stop_on_signal()?;
    let metrics = Metrics::default();
    std::fs::create_dir_all(&state_dir).map_err(system(format!("making {}", state_dir.display())))?;
    let _incarnation = Incarnation::begin(&state_dir, START_LIMIT).await?;
    let keeper = tokio::task::spawn_blocking(move || Link::connect(&keeper_socket, START_LIMIT))
        .await
        .map_err(|error| RunError::System { what: "a thread".into(), source: io::Error::other(error) })??;
    let offload = Offload::with_this_program().map_err(system("finding this program"))?;
    let env = Env::system();
    let cache = cache(state_dir.join("cache"), cache_bytes)?;
    let journal_dir = journal_dir.unwrap_or_else(|| state_dir.join("journals"));
    let journals = Journals::new(journal_dir, journal_bytes, Patience::default())?;
    let pools = Pools::new(&common.pools, Access::ReadOnly, Arc::clone(&cache) as Arc<_>, env.clone());

    let tls = common.tls_dir.map(TlsFiles::new);
    let owner_listener = match &tls {
        Some(_) => Some(
            std::net::TcpListener::bind(node_addr)
                .map_err(|source| OwnerServerError::Listen { address: node_addr, source })?,
        ),
        None => None,
    };
    let endpoint = match &owner_listener {
        Some(listener) => listener.local_addr().map_err(system("the address of nodes"))?.to_string(),
        None => String::new(),
    };
    let incidents = Incidents::default();
    // Shared with the host, so that the mounts outlive the container.
    let fuse_dir = kubelet_dir.join("plugins").join(crate::identity::DRIVER_NAME).join("fuse");
    let volumes = Arc::new(OpenVolumes::new(Parts {
        pools: pools.clone(),
        front_end: FrontEnd::new(fuse_dir, Arc::clone(&keeper), offload.clone()),
        keeper,
        offload: offload.clone(),
        env,
        endpoint,
        dirty_bytes,
        dirty_budget: Budget::new(dirty_total_bytes),
        journals,
        outage: Duration::from_secs(outage_seconds),
        hydration: Arc::new(Pace::new(hydrate_bytes_per_second)),
        collections: Arc::new(Semaphore::new(COLLECTIONS)),
        incidents: incidents.clone(),
    }));
    let counted = (PoolMetrics { pools: pools.clone() }, VolumeMetrics { volumes: Arc::clone(&volumes) });
    metrics.register(|registry| {
        registry.register_collector(Box::new(counted.0));
        registry.register_collector(Box::new(counted.1));
        registry.register_collector(Box::new(CacheMetrics { cache }));
        registry.register_collector(Box::new(incidents.clone()));
    });
    let records = Records::open(state_dir.join("mounts"))?;
    let mounter = Arc::new(SystemMounter::new(offload));
    let node = NodeService::new(node_id.clone(), Arc::clone(&volumes) as Arc<_>, mounter, records);
    let services = rpc::identity().add_service(NodeServer::new(node));
    let registered_at = sockets::path_of(&common.endpoint)?;
    let calls = async {
        // A store that is away must hold up neither the volumes of the others nor the calls.
        let load = async {
            let _ = tokio::time::timeout(LOAD_LIMIT, pools.load()).await;
        };
        volumes.adopt_all(load).await.map_err(RunError::Adopt)?;
        // The CSI socket first: the kubelet dials it as soon as it finds the other.
        let listener = sockets::bind(&registered_at)?;
        let registration = sockets::bind(&registration::socket(&kubelet_dir))?;
        tokio::try_join!(
            async { Ok(rpc::serve(listener, services, metrics.clone(), stopped(&stop)).await?) },
            async { Ok(register(registration, registered_at.clone(), stopped(&stop)).await?) },
            async {
                let Some((listener, tls)) = owner_listener.zip(tls) else { return Ok(()) };
                let owner = Arc::new(OwnerService::new(Arc::clone(&volumes)));
                Ok(server::serve(listener, tls, metrics.clone(), owner, stopped(&stop)).await?)
            },
            async {
                volumes.tend_journals(&stop).await;
                Ok(())
            },
        )
    };
    // Liveness from the beginning: it depends on no store.
    let watched = async {
        tokio::try_join!(
            async {
                let health = health::health(pools.list(), incidents);
                Ok(health::serve(common.health_addr, health, stopped(&stop)).await?)
            },
            async {
                Ok(health::serve(common.metrics_addr, health::metrics(metrics.clone()), stopped(&stop))
                    .await?)
            },
            async {
                pools.watch(Some(&node_id), &stop).await;
                Ok(())
            },
        )
    };
    end_together(&stop, async { tokio::try_join!(watched, calls) }).await
}

async fn register(
    listener: tokio::net::UnixListener,
    csi_socket: PathBuf,
    end: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .add_service(RegistrationService::server(&csi_socket))
        .serve_with_incoming_shutdown(tokio_stream::wrappers::UnixListenerStream::new(listener), end)
        .await
}

fn cache(dir: PathBuf, bytes: u64) -> Result<Arc<Tiers>, RunError> {
    let disk = match bytes {
        0 => None,
        bytes => {
            std::fs::create_dir_all(&dir).map_err(system(format!("making {}", dir.display())))?;
            Some(Arc::new(DiskCache::open(&dir, bytes)?))
        }
    };
    Ok(Arc::new(Tiers { memory: Arc::new(MemoryCache::new(CHUNK_MEMORY_BYTES)), disk }))
}

/// Cancelled by SIGTERM or SIGINT.
fn stop_on_signal() -> Result<CancellationToken, RunError> {
    let stop = CancellationToken::new();
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind).map_err(system("waiting for signals"))?;
        let stop = stop.clone();
        tokio::spawn(async move {
            signals.recv().await;
            stop.cancel();
        });
    }
    Ok(stop)
}

/// Ends when `stop` is cancelled; owned, for servers that want it so.
fn stopped(stop: &CancellationToken) -> impl Future<Output = ()> + Send + 'static {
    stop.clone().cancelled_owned()
}

/// Waits for all servers, but not for ever once they were told to stop.
async fn end_together<T>(
    stop: &CancellationToken,
    servers: impl Future<Output = Result<T, RunError>>,
) -> Result<(), RunError> {
    tokio::select! {
        biased;
        ended = servers => ended.map(|_| ()),
        () = async {
            stop.cancelled().await;
            tokio::time::sleep(END_LIMIT).await;
        } => {
            tracing::warn!("calls were still running when the process ended");
            Ok(())
        }
    }
}
