//! A cluster for tests: an API server in memory, a store in memory, a clock that stands still until it is told.

// Each test file uses a part of it.
#![allow(dead_code)]

pub mod api_server;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use holdfast_api::archived::Progress;
use holdfast_api::jiff::Timestamp;
use holdfast_operator::context::{Context, Settings};
use holdfast_operator::metrics::Metrics;
use holdfast_operator::pool_file::PoolFile;
use holdfast_operator::probe::{Incident, LoadedPool, PoolKind, Probe, ProbeError};
use holdfast_operator::store::{ArchiveStore, ArchivedPoint, Hydration, PoolSummary, StoreError};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use api_server::ApiServer;

/// The namespace of Holdfast.
pub const SYSTEM: &str = "holdfast-system";

/// A store in memory.
#[derive(Default)]
pub struct FakeStore {
    points: Mutex<Vec<ArchivedPoint>>,
    trouble: Mutex<Option<StoreError>>,
    hydration: Mutex<BTreeMap<String, Hydration>>,
}

impl FakeStore {
    /// Adds a point.
    pub fn put(&self, point: ArchivedPoint) {
        self.points.lock().unwrap_or_else(PoisonError::into_inner).push(point);
    }

    /// Removes all points.
    pub fn clear(&self) {
        self.points.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Makes every question fail, or work again.
    pub fn fail_with(&self, trouble: Option<StoreError>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    /// Says that a volume reads from no archive any more.
    pub fn let_go(&self, handle: &str) {
        self.hydration.lock().unwrap_or_else(PoisonError::into_inner).remove(handle);
    }

    /// Says how far a volume has been copied back.
    pub fn hydrate(&self, handle: &str, hydrated_bytes: u64, total_bytes: u64) {
        let mut map = self.hydration.lock().unwrap_or_else(PoisonError::into_inner);
        map.insert(handle.to_owned(), Hydration { hydrated_bytes, total_bytes });
    }

    fn check(&self) -> Result<(), StoreError> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone().map_or(Ok(()), Err)
    }
}

#[async_trait]
impl ArchiveStore for FakeStore {
    async fn probe(&self, _: &PoolFile) -> Result<PoolSummary, StoreError> {
        self.check()?;
        Ok(PoolSummary { pool_id: "7f3a9c1d".to_owned(), stored_bytes: Some(1 << 30) })
    }

    async fn point(&self, pool: &PoolFile, name: &str) -> Result<Option<ArchivedPoint>, StoreError> {
        Ok(self.points(pool).await?.into_iter().find(|point| point.name == name))
    }

    async fn points(&self, _: &PoolFile) -> Result<Vec<ArchivedPoint>, StoreError> {
        self.check()?;
        Ok(self.points.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn hydration(
        &self,
        _: &[PoolFile],
        _: &PoolFile,
        handle: &str,
        _: u64,
    ) -> Result<Option<Hydration>, StoreError> {
        self.check()?;
        Ok(self.hydration.lock().unwrap_or_else(PoisonError::into_inner).get(handle).copied())
    }
}

/// Drivers that have loaded what the test says, and Jobs that are half done.
#[derive(Default)]
pub struct FakeProbe {
    loaded: Mutex<BTreeMap<String, Vec<LoadedPool>>>,
    incidents: Mutex<BTreeMap<String, Vec<Incident>>>,
}

impl FakeProbe {
    /// The driver at that address tells these incidents.
    pub fn tell(&self, address: &str, incidents: Vec<Incident>) {
        self.incidents.lock().unwrap_or_else(PoisonError::into_inner).insert(address.to_owned(), incidents);
    }

    /// The driver at that address has loaded the target.
    pub fn load(&self, address: &str, target: &str) {
        let pool = LoadedPool { name: target.to_owned(), id: "7f3a9c1d".to_owned(), kind: PoolKind::Target };
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner).insert(address.to_owned(), vec![pool]);
    }
}

#[async_trait]
impl Probe for FakeProbe {
    async fn pools(&self, address: &str) -> Result<Vec<LoadedPool>, ProbeError> {
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = || ProbeError { url: address.to_owned(), why: "connection refused".to_owned() };
        loaded.get(address).cloned().ok_or_else(refused)
    }

    async fn incidents(&self, address: &str) -> Result<Vec<Incident>, ProbeError> {
        let told = self.incidents.lock().unwrap_or_else(PoisonError::into_inner);
        let refused = || ProbeError { url: address.to_owned(), why: "connection refused".to_owned() };
        told.get(address).cloned().ok_or_else(refused)
    }

    async fn progress(&self, _: &str) -> Result<Progress, ProbeError> {
        Ok(Progress { changed_bytes: 100, transferred_bytes: 40 })
    }
}

/// All of it.
pub struct Cluster {
    /// The API server.
    pub api: ApiServer,
    /// A client of it.
    pub client: Client,
    /// The store.
    pub store: Arc<FakeStore>,
    /// Drivers and Jobs.
    pub probe: Arc<FakeProbe>,
    /// What reconciles are given.
    pub ctx: Arc<Context>,
    now: Arc<AtomicI64>,
}

impl Cluster {
    /// A cluster with Holdfast's namespace, the namespace `shop` that may archive, and a snapshot class.
    pub async fn at(time: &str) -> Self {
        let start: Timestamp = time.parse().expect("a timestamp");
        let now = Arc::new(AtomicI64::new(start.as_second()));
        let clock_now = Arc::clone(&now);
        let clock: Arc<dyn Fn() -> Timestamp + Send + Sync> =
            Arc::new(move || Timestamp::from_second(clock_now.load(Ordering::SeqCst)).expect("in range"));
        let api = ApiServer::new(Arc::clone(&clock));
        let client = api.client();
        let (store, probe) = (Arc::<FakeStore>::default(), Arc::<FakeProbe>::default());
        for (name, labels) in
            [("kube-system", json!({})), (SYSTEM, json!({})), ("shop", json!({"backup": "allowed"}))]
        {
            let namespace = json!({
                "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels},
            });
            create(&client, None, &namespace).await;
        }
        let settings = Settings {
            namespace: SYSTEM.to_owned(),
            image: "holdfast:test".to_owned(),
            image_pull_policy: None,
            image_pull_secrets: Vec::new(),
            pool_host_path: None,
            pools_secret: "holdfast-pools".to_owned(),
            target_interval: Duration::from_secs(300),
            identity: "operator-0".to_owned(),
        };
        let ctx = Context::new(
            client.clone(),
            settings,
            store.clone(),
            probe.clone(),
            Metrics::default(),
            Arc::clone(&clock),
        )
        .await
        .expect("a context");
        let cluster = Self { api, client, store, probe, ctx: Arc::new(ctx), now };
        cluster
            .create(json!({
                "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotClass",
                "metadata": {"name": "holdfast"}, "driver": "csi.holdfast.storage", "deletionPolicy": "Delete",
            }))
            .await;
        cluster
    }

    /// Lets time pass.
    pub fn pass(&self, minutes: i64) {
        self.now.fetch_add(60 * minutes, Ordering::SeqCst);
    }

    /// Creates an object, in the namespace its metadata names.
    pub async fn create(&self, object: Value) {
        let namespace = object["metadata"]["namespace"].as_str().map(str::to_owned);
        create(&self.client, namespace.as_deref(), &object).await;
    }

    /// Reads an object.
    pub async fn get<K>(&self, name: &str) -> Arc<K>
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Serialize,
    {
        let plural = K::plural(&()).into_owned();
        let object = self.api.find(&plural, name).unwrap_or_else(|| panic!("no {plural} {name}"));
        Arc::new(serde_json::from_value(object).expect("the object reads"))
    }

    /// Sets fields of an object's status, as another controller would.
    pub async fn set_status(&self, plural: &str, name: &str, status: Value) {
        let object = self.api.find(plural, name).unwrap_or_else(|| panic!("no {plural} {name}"));
        let namespace = object["metadata"]["namespace"].as_str();
        let patch = Patch::Merge(json!({"status": status}));
        dynamic(&self.client, namespace, &object)
            .patch_status(name, &PatchParams::default(), &patch)
            .await
            .expect("a status");
    }

    /// Merges a change into an object, as a user would.
    pub async fn change(&self, plural: &str, name: &str, change: Value) {
        let object = self.api.find(plural, name).unwrap_or_else(|| panic!("no {plural} {name}"));
        let namespace = object["metadata"]["namespace"].as_str();
        dynamic(&self.client, namespace, &object)
            .patch(name, &PatchParams::default(), &Patch::Merge(change))
            .await
            .expect("a change");
    }

    /// A driver's pod that runs.
    pub async fn driver(&self, name: &str, component: &str, ip: &str) {
        self.create(json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": SYSTEM,
                "labels": {"app.kubernetes.io/name": "holdfast", "app.kubernetes.io/component": component},
            },
            "spec": {"nodeName": format!("node-of-{name}"), "containers": [{"name": "driver"}]},
            "status": {"phase": "Running", "podIP": ip},
        }))
        .await;
    }

    /// Deletes an object, as a user would.
    pub async fn delete(&self, plural: &str, name: &str) {
        let object = self.api.find(plural, name).unwrap_or_else(|| panic!("no {plural} {name}"));
        let namespace = object["metadata"]["namespace"].as_str();
        dynamic(&self.client, namespace, &object)
            .delete(name, &Default::default())
            .await
            .expect("a deletion");
    }

    /// A bound claim of namespace `shop` with an ext4 volume.
    pub async fn claim(&self, name: &str) {
        self.create(json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": format!("pv-{name}")},
            "spec": {
                "volumeMode": "Filesystem",
                "csi": {
                    "driver": "csi.holdfast.storage", "volumeHandle": format!("pool-{name}"), "fsType": "ext4",
                },
            },
        }))
        .await;
        self.create(json!({
            "apiVersion": "v1", "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": "shop", "labels": {"app": "pg"}},
            "spec": {"volumeName": format!("pv-{name}")},
            "status": {"phase": "Bound"},
        }))
        .await;
    }

    /// An encrypted target `offsite` for namespaces labelled `backup: allowed`, with all its Secrets.
    pub async fn target(&self) {
        for (name, data) in [
            ("offsite-writer", json!({"accessKeyId": "V1JJVEVS", "secretAccessKey": "d3JpdGU="})),
            ("offsite-reader", json!({"accessKeyId": "UkVBREVS", "secretAccessKey": "cmVhZA=="})),
            ("offsite-key", json!({"key": "QUFFQ0F3UUZCZ2NJQ1FvTERBME9EeEFSRWhNVUZSWVhHQmthR3h3ZEhoOD0="})),
        ] {
            self.create(json!({
                "apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": name, "namespace": SYSTEM}, "data": data,
            }))
            .await;
        }
        self.create(json!({
            "apiVersion": "holdfast.storage/v1alpha1", "kind": "ArchiveTarget",
            "metadata": {"name": "offsite"},
            "spec": {
                "url": "s3://backups/prod",
                "writerSecretName": "offsite-writer", "readerSecretName": "offsite-reader",
                "encryption": {"keySecretName": "offsite-key"},
                "namespaceSelector": {"matchLabels": {"backup": "allowed"}},
                "limits": {"parallelJobs": 1},
            },
        }))
        .await;
    }
}

fn dynamic(client: &Client, namespace: Option<&str>, object: &Value) -> Api<DynamicObject> {
    let (group, version) = match object["apiVersion"].as_str().expect("an apiVersion").split_once('/') {
        Some((group, version)) => (group, version),
        None => ("", object["apiVersion"].as_str().expect("an apiVersion")),
    };
    let kind = object["kind"].as_str().expect("a kind");
    let plural = match kind {
        "SnapshotPolicy" => "snapshotpolicies".to_owned(),
        "VolumeSnapshotClass" => "volumesnapshotclasses".to_owned(),
        _ => format!("{}s", kind.to_lowercase()),
    };
    let resource = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), &plural);
    match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
        None => Api::all_with(client.clone(), &resource),
    }
}

async fn create(client: &Client, namespace: Option<&str>, object: &Value) {
    let status = object["status"].clone();
    let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
    let api = dynamic(client, namespace, object);
    let typed: DynamicObject = serde_json::from_value(object.clone()).expect("an object");
    api.create(&PostParams::default(), &typed).await.unwrap_or_else(|error| panic!("create {name}: {error}"));
    if !status.is_null() {
        let patch = Patch::Merge(json!({"status": status}));
        api.patch_status(&name, &PatchParams::default(), &patch).await.expect("a status");
    }
}
