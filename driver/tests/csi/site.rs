//! A controller and node plugins as processes, and what Kubernetes asks of them.

#![allow(dead_code, reason = "each test binary uses a part of this")]

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use holdfast_csi_proto::csi::controller_client::ControllerClient;
use holdfast_csi_proto::csi::node_client::NodeClient;
use holdfast_csi_proto::csi::volume_capability::access_mode::Mode;
use holdfast_csi_proto::csi::volume_capability::{AccessMode, AccessType, BlockVolume, MountVolume};
use holdfast_csi_proto::csi::{
    CapacityRange, ControllerModifyVolumeRequest, ControllerPublishVolumeRequest,
    ControllerUnpublishVolumeRequest, CreateSnapshotRequest, CreateVolumeRequest, DeleteVolumeRequest,
    NodeGetVolumeStatsRequest, NodePublishVolumeRequest, NodeStageVolumeRequest, NodeUnpublishVolumeRequest,
    NodeUnstageVolumeRequest, Snapshot, Volume, VolumeCapability, VolumeCondition, VolumeContentSource,
};
use holdfast_driver::keeper::Link;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

use crate::certificates;
use crate::common::{KeeperProcess, LIMIT, PROGRAM, clean_up, eventually};

pub const MIB: i64 = 1 << 20;
/// As the chart has it.
const ARENAS: &str = "8";

/// A process of the driver that dies with this.
pub struct Process {
    child: Child,
}

impl Process {
    fn start(arguments: &[String], log: &Path) -> Self {
        let log = std::fs::File::options().create(true).append(true).open(log).unwrap();
        let mut program = Command::new(PROGRAM);
        program.args(arguments).env("MALLOC_ARENA_MAX", ARENAS).stdin(Stdio::null()).stderr(log);
        let child = program.spawn().unwrap();
        Self { child }
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// SIGTERM; how long it took to end.
    pub fn terminate(&mut self) -> Duration {
        let begun = Instant::now();
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.child.wait().unwrap();
        begun.elapsed()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        // One that has been killed before has been waited for, and is left alone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The whole of it, over one directory pool.
pub struct Site {
    pub controller: ControllerClient<Channel>,
    _controller: Process,
    dir: TempDir,
}

/// A node of the site.
pub struct Node {
    pub name: &'static str,
    pub client: NodeClient<Channel>,
    pub process: Process,
    pub keeper: KeeperProcess,
    metrics: SocketAddr,
    arguments: Vec<String>,
    log: PathBuf,
    dir: PathBuf,
}

async fn channel(socket: &Path) -> Channel {
    eventually(&format!("{} accepts connections", socket.display()), || {
        std::os::unix::net::UnixStream::connect(socket).is_ok()
    });
    Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap().connect().await.unwrap()
}

impl Site {
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pool = format!("url: file://{}/pool\n", dir.path().display());
        Self::start_in(dir, &pool, None).await
    }

    /// With an archive, that a target file says.
    pub async fn start_with_target(target: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let pool = format!("url: file://{}/pool\n", dir.path().display());
        Self::start_in(dir, &pool, Some(target)).await
    }

    /// Over the pool that a pool file says.
    pub async fn start_over(pool: &str) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), pool, None).await
    }

    async fn start_in(dir: TempDir, pool: &str, target: Option<&str>) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let root = dir.path();
        for name in ["pool", "pools", "targets"] {
            std::fs::create_dir(root.join(name)).unwrap();
        }
        std::fs::write(root.join("pools/default.yaml"), pool).unwrap();
        if let Some(target) = target {
            std::fs::write(root.join("targets/offsite.yaml"), target).unwrap();
        }
        certificates::write(&root.join("tls-controller"), &root.join("tls-node"));
        let mut arguments = vec!["controller".to_owned()];
        arguments.extend(common_arguments(root, "controller.sock", "tls-controller", free_address()));
        let process = Process::start(&arguments, &root.join("controller.log"));
        let controller = ControllerClient::new(channel(&root.join("controller.sock")).await);
        Self { controller, _controller: process, dir }
    }

    /// The directory that everything is in.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub async fn node(&self, name: &'static str) -> Node {
        self.node_with(name, &["--cache-bytes=0"]).await
    }

    /// A node whose plugin has further arguments.
    pub async fn node_with(&self, name: &'static str, further: &[&str]) -> Node {
        let root = self.dir.path();
        let dir = root.join(name);
        std::fs::create_dir_all(dir.join("kubelet")).unwrap();
        let keeper = KeeperProcess::start(&dir.join("keeper.sock"));
        let metrics = free_address();
        let mut arguments = vec!["node".to_owned()];
        arguments.extend(common_arguments(root, &format!("{name}/csi.sock"), "tls-node", metrics));
        arguments.extend([
            format!("--node-id={name}"),
            format!("--node-addr={}", free_address()),
            format!("--kubelet-dir={}/kubelet", dir.display()),
            format!("--state-dir={}/state", dir.display()),
            format!("--keeper-socket={}/keeper.sock", dir.display()),
        ]);
        arguments.extend(further.iter().map(|&argument| argument.to_owned()));
        let log = dir.join("log");
        let process = Process::start(&arguments, &log);
        let client = NodeClient::new(channel(&dir.join("csi.sock")).await);
        Node { name, client, process, keeper, metrics, arguments, log, dir }
    }

    pub async fn create(&mut self, name: &str, source: Option<VolumeContentSource>) -> Volume {
        self.create_with(name, source, &[]).await
    }

    /// A volume of a StorageClass with further parameters.
    pub async fn create_with(
        &mut self,
        name: &str,
        source: Option<VolumeContentSource>,
        parameters: &[(&str, &str)],
    ) -> Volume {
        self.create_volume(name, 64 * MIB, source, parameters).await
    }

    /// A volume of so many bytes.
    pub async fn create_sized(&mut self, name: &str, bytes: i64) -> Volume {
        self.create_volume(name, bytes, None, &[]).await
    }

    async fn create_volume(
        &mut self,
        name: &str,
        required_bytes: i64,
        source: Option<VolumeContentSource>,
        parameters: &[(&str, &str)],
    ) -> Volume {
        let parameters = parameters.iter().chain(&[("pool", "default")]);
        let request = CreateVolumeRequest {
            name: name.into(),
            capacity_range: Some(CapacityRange { required_bytes, limit_bytes: 0 }),
            volume_capabilities: vec![filesystem(Mode::SingleNodeWriter)],
            parameters: parameters.map(|(name, value)| (name.to_string(), value.to_string())).collect(),
            volume_content_source: source,
            ..CreateVolumeRequest::default()
        };
        self.controller.create_volume(request).await.unwrap().into_inner().volume.unwrap()
    }

    /// Says when the volume's fsyncs return, as a VolumeAttributesClass does.
    pub async fn modify(&mut self, volume: &Volume, durability: &str) {
        let request = ControllerModifyVolumeRequest {
            volume_id: volume.volume_id.clone(),
            mutable_parameters: HashMap::from([("durability".into(), durability.into())]),
            ..ControllerModifyVolumeRequest::default()
        };
        self.controller.controller_modify_volume(request).await.unwrap();
    }

    /// The store is down until this is dropped.
    pub fn without_store(&self) -> StoreDown {
        let (there, away) = (self.dir.path().join("pool"), self.dir.path().join("pool-away"));
        std::fs::rename(&there, &away).unwrap();
        // In the way of whoever would make the directory anew.
        std::fs::write(&there, "").unwrap();
        StoreDown { there, away }
    }

    pub async fn delete(&mut self, volume: &Volume) {
        let request =
            DeleteVolumeRequest { volume_id: volume.volume_id.clone(), ..DeleteVolumeRequest::default() };
        self.controller.delete_volume(request).await.unwrap();
    }

    pub async fn attach(
        &mut self,
        volume: &Volume,
        node: &Node,
        capability: &VolumeCapability,
    ) -> Result<HashMap<String, String>, Status> {
        let request = ControllerPublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            node_id: node.name.into(),
            volume_capability: Some(capability.clone()),
            ..ControllerPublishVolumeRequest::default()
        };
        // The node registers itself in the pool soon after it has started.
        for _ in 0..200 {
            match self.controller.controller_publish_volume(request.clone()).await {
                Err(status) if status.code() == tonic::Code::NotFound => {
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
                answer => return answer.map(|answer| answer.into_inner().publish_context),
            }
        }
        panic!("node {} does not register in the pool", node.name);
    }

    pub async fn detach(&mut self, volume: &Volume, node: &Node) {
        let request = ControllerUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            node_id: node.name.into(),
            ..ControllerUnpublishVolumeRequest::default()
        };
        self.controller.controller_unpublish_volume(request).await.unwrap();
    }

    pub async fn snapshot(&mut self, volume: &Volume, name: &str) -> Result<Snapshot, Status> {
        let request = CreateSnapshotRequest {
            source_volume_id: volume.volume_id.clone(),
            name: name.into(),
            ..CreateSnapshotRequest::default()
        };
        Ok(self.controller.create_snapshot(request).await?.into_inner().snapshot.unwrap())
    }
}

/// See [`Site::without_store`].
pub struct StoreDown {
    there: PathBuf,
    away: PathBuf,
}

impl Drop for StoreDown {
    fn drop(&mut self) {
        std::fs::remove_file(&self.there).unwrap();
        std::fs::rename(&self.away, &self.there).unwrap();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        clean_up(self.dir.path());
        if std::thread::panicking() {
            for name in ["controller.log", "n1/log", "n2/log"] {
                let log = std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default();
                eprintln!("--- {name}\n{log}");
            }
        }
    }
}

impl Node {
    /// SIGKILL and a successor, whose pool is open.
    pub async fn restart(&mut self) {
        self.process.kill();
        self.start_again().await;
        self.ready();
    }

    /// SIGKILL and a successor that has `argument` instead of the one of that name.
    pub async fn restart_with(&mut self, argument: &str) {
        let (name, _) = argument.split_once('=').unwrap();
        self.arguments.retain(|old| old.split_once('=').is_none_or(|(old, _)| old != name));
        self.arguments.push(argument.into());
        self.restart().await;
    }

    /// SIGKILL of the keeper, and another one, into which the node plugin has put everything.
    pub fn restart_keeper(&mut self) {
        let link = Link::connect(&self.dir.join("keeper.sock"), LIMIT).unwrap();
        let before = link.list().unwrap().len();
        self.keeper.restart();
        eventually("the return of what the keeper held", || {
            link.list().is_ok_and(|names| names.len() >= before)
        });
    }

    /// A successor of a process that was killed.
    pub async fn start_again(&mut self) {
        self.process = Process::start(&self.arguments, &self.log);
        let socket = self.dir.join("csi.sock");
        self.client = NodeClient::new(channel(&socket).await);
    }

    /// Everything that is not on a disk is gone: processes, memory, mounts.
    pub fn lose_power(&mut self) {
        self.process.kill();
        self.keeper.kill();
        clean_up(&self.dir);
    }

    /// Keeper and node plugin come back after both have died, as in [`Self::lose_power`].
    pub async fn power_on(&mut self) {
        self.keeper.restart();
        self.start_again().await;
        self.ready();
    }

    /// Waits for the pool, which calls do not wait for.
    pub fn ready(&self) {
        eventually("the opening of the pool", || {
            self.find_metric("holdfast_pool_usable{pool=\"default\"}") == Some(1.0)
        });
    }

    /// A metric's value: `series` is its name and labels, as they stand in the answer.
    pub fn metric(&self, series: &str) -> f64 {
        self.find_metric(series).unwrap_or_else(|| panic!("{series} is not there"))
    }

    /// The same, if it is there.
    pub fn find_metric(&self, series: &str) -> Option<f64> {
        let answer = self.metrics();
        let value = answer.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.map(|value| value.parse().unwrap())
    }

    /// The values of all series of a metric.
    pub fn series(&self, name: &str) -> Vec<f64> {
        let answer = self.metrics();
        let series = answer.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('{'));
        series.map(|line| line.rsplit_once(' ').unwrap().1.parse().unwrap()).collect()
    }

    fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.metrics).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The files of journals with this extension.
    pub fn journals(&self, extension: &str) -> usize {
        let files = std::fs::read_dir(self.dir.join("state/journals")).unwrap();
        files
            .filter(|file| file.as_ref().unwrap().path().extension().is_some_and(|found| found == extension))
            .count()
    }

    pub fn staging(&self, volume: &Volume) -> PathBuf {
        self.dir.join("staging").join(&volume.volume_id)
    }

    /// Where the pod has the volume.
    pub fn target(&self, volume: &Volume) -> PathBuf {
        self.dir.join("pods").join(&volume.volume_id)
    }

    pub async fn publish(
        &mut self,
        volume: &Volume,
        context: &HashMap<String, String>,
        capability: &VolumeCapability,
    ) -> Result<PathBuf, Status> {
        let (staging, target) = (self.staging(volume), self.target(volume));
        for path in [&staging, &target] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        }
        let request = NodeStageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            publish_context: context.clone(),
            staging_target_path: staging.display().to_string(),
            volume_capability: Some(capability.clone()),
            ..NodeStageVolumeRequest::default()
        };
        self.client.node_stage_volume(request).await?;
        let request = NodePublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            publish_context: context.clone(),
            staging_target_path: staging.display().to_string(),
            target_path: target.display().to_string(),
            volume_capability: Some(capability.clone()),
            ..NodePublishVolumeRequest::default()
        };
        self.client.node_publish_volume(request).await?;
        Ok(target)
    }

    pub async fn unpublish(&mut self, volume: &Volume) -> Result<(), Status> {
        let request = NodeUnpublishVolumeRequest {
            volume_id: volume.volume_id.clone(),
            target_path: self.target(volume).display().to_string(),
        };
        self.client.node_unpublish_volume(request).await?;
        self.unstage(volume).await
    }

    pub async fn unstage(&mut self, volume: &Volume) -> Result<(), Status> {
        let request = NodeUnstageVolumeRequest {
            volume_id: volume.volume_id.clone(),
            staging_target_path: self.staging(volume).display().to_string(),
        };
        self.client.node_unstage_volume(request).await.map(|_| ())
    }

    /// What the kubelet is told of the volume's condition.
    pub async fn condition(&mut self, volume: &Volume) -> VolumeCondition {
        let request = NodeGetVolumeStatsRequest {
            volume_id: volume.volume_id.clone(),
            volume_path: self.target(volume).display().to_string(),
            ..NodeGetVolumeStatsRequest::default()
        };
        let stats = self.client.node_get_volume_stats(request).await.unwrap().into_inner();
        stats.volume_condition.unwrap()
    }
}

pub fn filesystem(mode: Mode) -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(AccessMode { mode: mode.into() }),
    }
}

pub fn block() -> VolumeCapability {
    VolumeCapability {
        access_type: Some(AccessType::Block(BlockVolume {})),
        access_mode: Some(AccessMode { mode: Mode::SingleNodeWriter.into() }),
    }
}

/// An address that nobody listens at.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).unwrap()
}

fn common_arguments(root: &Path, socket: &str, tls: &str, metrics: SocketAddr) -> Vec<String> {
    let at = |name: &str| root.join(name).display().to_string();
    vec![
        format!("--endpoint=unix://{}", at(socket)),
        format!("--pools-dir={}", at("pools")),
        format!("--targets-dir={}", at("targets")),
        format!("--tls-dir={}", at(tls)),
        "--health-addr=127.0.0.1:0".into(),
        format!("--metrics-addr={metrics}"),
    ]
}
