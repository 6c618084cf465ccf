//! What every reconcile is given: the outside world as values.

use std::sync::Arc;
use std::time::Duration;

use holdfast_api::jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, ObjectReference};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::Mutex;

use crate::api;
use crate::conditions::shorten;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::probe::Probe;
use crate::store::{ArchiveStore, StoreError};

/// The API server refuses longer notes on events.
const MAX_NOTE_BYTES: usize = 1024;

/// The longest that one question to a store may take.
const STORE_TIMEOUT: Duration = Duration::from_secs(60);

/// What the chart tells the operator.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The namespace of Holdfast itself: Secrets, Jobs and drivers are here.
    pub namespace: String,
    /// The image of the Jobs.
    pub image: String,
    /// When the kubelet pulls it; its own rule when absent.
    pub image_pull_policy: Option<String>,
    /// Secrets with which the kubelet pulls it.
    pub image_pull_secrets: Vec<String>,
    /// The directory on every node that holds `file:` pools; Jobs mount it at the same path.
    pub pool_host_path: Option<String>,
    /// The Secret with the pools of live volumes.
    pub pools_secret: String,
    /// How often a target is looked through for points that came or went.
    pub target_interval: Duration,
    /// This replica's name: holder of the lease, reporter of events.
    pub identity: String,
}

/// What every reconcile is given.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What the chart says.
    pub settings: Settings,
    /// The engine's view of pools.
    pub store: Arc<dyn ArchiveStore>,
    /// What is measured.
    pub metrics: Metrics,
    /// Asks drivers and Jobs over HTTP.
    pub probe: Arc<dyn Probe>,
    /// The UID of the cluster.
    pub cluster_uid: String,
    /// Held while Jobs are counted and one more is started, so that a limit holds.
    pub admission: Mutex<()>,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    recorder: Recorder,
}

impl Context {
    /// Reads the cluster's UID and puts everything together.
    pub async fn new(
        client: Client,
        settings: Settings,
        store: Arc<dyn ArchiveStore>,
        probe: Arc<dyn Probe>,
        metrics: Metrics,
        clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    ) -> Result<Self, Error> {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let system = api::get(&namespaces, "kube-system").await?.and_then(|namespace| namespace.uid());
        let cluster_uid = system
            .ok_or(Error::Incomplete { object: "Namespace kube-system".to_owned(), field: "metadata.uid" })?;
        let reporter =
            Reporter { controller: api::FIELD_MANAGER.to_owned(), instance: Some(settings.identity.clone()) };
        Ok(Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            settings,
            store,
            metrics,
            probe,
            cluster_uid,
            admission: Mutex::new(()),
            clock,
        })
    }

    /// The time, in whole seconds as the API server keeps it.
    pub fn now(&self) -> Timestamp {
        crate::conditions::whole_seconds((self.clock)())
    }

    /// A handle on the resources of Holdfast's own namespace.
    pub fn own<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.settings.namespace)
    }

    /// A handle on the resources of a namespace.
    pub fn within<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// A handle on the resources of the cluster: cluster-scoped ones, or those of all namespaces.
    pub fn everywhere<K: Resource<DynamicType = ()>>(&self) -> Api<K> {
        Api::all(self.client.clone())
    }

    /// Publishes an event on the object. An event that cannot be published is logged: it is news, not state.
    pub async fn event<K>(&self, object: &K, kind: EventType, reason: &str, note: &str)
    where
        K: Resource<DynamicType = ()>,
    {
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(self.note(note)),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        let reference: ObjectReference = object.object_ref(&());
        if let Err(error) = self.recorder.publish(&event, &reference).await {
            tracing::warn!(object = api::describe(object), reason, %error, "event not published");
        }
    }

    /// The note of an event, as long as the API server takes it.
    pub fn note(&self, text: &str) -> String {
        shorten(text, MAX_NOTE_BYTES)
    }

    /// Waits for a store's answer, but not without end.
    pub async fn ask<T>(
        &self,
        question: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        tokio::time::timeout(STORE_TIMEOUT, question).await.unwrap_or(Err(StoreError::Timeout))
    }
}
