//! An API server in memory: create, read, list by labels, replace, merge, apply, delete with finalizers, status
//! subresources, resource versions, watches, and the validation rules of Holdfast's own resources.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use axum::body::Body;
use axum::http::{Method, Request, Response, StatusCode};
use holdfast_api::crds;
use holdfast_api::jiff::Timestamp;
use kube::Client;
use kube::core::cel::Validator;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

/// Where an object lives: API root, plural, namespace, name.
type Key = (String, String, Option<String>, String);

#[derive(Default)]
struct State {
    objects: BTreeMap<Key, Value>,
    /// Everything that happened: an event's version is its place, counted from one.
    history: Vec<Event>,
    uids: u64,
    writes: Vec<String>,
}

#[derive(Clone)]
struct Event {
    type_: &'static str,
    key: Key,
    object: Value,
}

impl State {
    fn next_version(&self) -> String {
        (self.history.len() + 1).to_string()
    }
}

/// The server; clones share their objects.
#[derive(Clone)]
pub struct ApiServer {
    state: Arc<Mutex<State>>,
    changes: Arc<watch::Sender<usize>>,
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
}

struct Place {
    root: String,
    plural: String,
    namespace: Option<String>,
    name: Option<String>,
    subresource: Option<String>,
}

impl Place {
    /// Whether a watch or a list of this place shows the object.
    fn holds(&self, (root, plural, namespace, _): &Key) -> bool {
        *root == self.root
            && *plural == self.plural
            && (self.namespace.is_none() || *namespace == self.namespace)
    }
}

fn place(path: &str) -> Place {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let root_parts = if parts[0] == "api" { 2 } else { 3 };
    let root = parts[..root_parts].join("/");
    let mut rest = &parts[root_parts..];
    let mut namespace = None;
    if rest[0] == "namespaces" && rest.len() > 2 {
        namespace = Some(rest[1].to_owned());
        rest = &rest[2..];
    }
    let part = |index: usize| rest.get(index).map(|part| (*part).to_owned());
    Place { root, plural: rest[0].to_owned(), namespace, name: part(1), subresource: part(2) }
}

fn failure(code: u16, reason: &str, message: &str) -> (u16, Value) {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure",
        "code": code, "reason": reason, "message": message,
    });
    (code, status)
}

/// Splits at commas outside parentheses.
fn requirements(selector: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0;
    for c in selector.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        parts.last_mut().expect("never empty").push(c);
    }
    parts.retain(|part| !part.is_empty());
    parts
}

fn selects(selector: &str, object: &Value) -> bool {
    let label = |key: &str| object["metadata"]["labels"][key].as_str();
    requirements(selector).iter().all(|requirement| {
        if let Some((key, values)) = requirement.split_once(" in ") {
            let values = values.trim_matches(['(', ')']).split(',').map(str::trim).collect::<Vec<_>>();
            label(key).is_some_and(|value| values.contains(&value))
        } else if let Some((key, value)) = requirement.split_once('=') {
            label(key) == Some(value)
        } else {
            label(requirement).is_some()
        }
    })
}

/// JSON merge patch (RFC 7396).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let target = target.as_object_mut().expect("made an object");
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

/// Refuses what the resource definitions refuse.
fn validate(object: &Value, old: Option<&Value>) -> Result<(), String> {
    let kind = object["kind"].as_str().unwrap_or_default();
    let Some(crd) = crds().into_iter().find(|crd| crd.spec.names.kind == kind) else { return Ok(()) };
    let crd = serde_json::to_value(crd).expect("serialises");
    let schema = crd.pointer("/spec/versions/0/schema/openAPIV3Schema").expect("a schema");
    match Validator::new().validate(schema, object, old) {
        Ok(()) => Ok(()),
        Err(errors) => Err(errors.iter().map(|error| error.message.clone()).collect::<Vec<_>>().join("; ")),
    }
}

impl ApiServer {
    /// An empty server whose objects are created at the clock's time.
    pub fn new(clock: Arc<dyn Fn() -> Timestamp + Send + Sync>) -> Self {
        Self { state: Arc::default(), changes: Arc::new(watch::Sender::new(0)), clock }
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Client::new(service, "default")
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.expect("a body in memory");
        let place = place(head.uri.path());
        let query: BTreeMap<String, String> =
            url::form_urlencoded::parse(head.uri.query().unwrap_or_default().as_bytes())
                .into_owned()
                .collect();
        let body: Value =
            if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") };
        let is_apply = head
            .headers
            .get("content-type")
            .is_some_and(|kind| kind.as_bytes().starts_with(b"application/apply-patch"));
        if head.method != Method::GET && place.plural != "events" {
            let name =
                place.name.as_deref().or(body["metadata"]["name"].as_str()).unwrap_or_default().to_owned();
            let sub = place.subresource.as_deref().map(|sub| format!("/{sub}")).unwrap_or_default();
            self.lock().writes.push(format!("{} {}/{name}{sub}", head.method, place.plural));
        }
        if query.get("watch").is_some_and(|value| value == "true") {
            return self.watch(place, &query);
        }
        let (code, value) = match head.method {
            Method::GET => self.read(&place, &query),
            Method::POST => self.create(&place, body),
            Method::PUT => self.replace(&place, body),
            Method::PATCH => self.patch(&place, &body, is_apply),
            Method::DELETE => self.delete(&place),
            _ => failure(405, "MethodNotAllowed", "not here"),
        };
        Response::builder()
            .status(StatusCode::from_u16(code).expect("a status code"))
            .body(Body::from(serde_json::to_vec(&value).expect("JSON")))
            .expect("a response")
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn key(place: &Place, name: &str) -> Key {
        (place.root.clone(), place.plural.clone(), place.namespace.clone(), name.to_owned())
    }

    fn read(&self, place: &Place, query: &BTreeMap<String, String>) -> (u16, Value) {
        let state = self.lock();
        if let Some(name) = &place.name {
            return match state.objects.get(&Self::key(place, name)) {
                Some(object) => (200, object.clone()),
                None => failure(404, "NotFound", &format!("{} {name} not found", place.plural)),
            };
        }
        let selector = query.get("labelSelector").map(String::as_str).unwrap_or_default();
        let items: Vec<&Value> = state
            .objects
            .iter()
            .filter(|(key, _)| place.holds(key))
            .map(|(_, object)| object)
            .filter(|object| selects(selector, object))
            .collect();
        let metadata = json!({"resourceVersion": state.history.len().to_string()});
        (200, json!({"kind": "List", "apiVersion": "v1", "metadata": metadata, "items": items}))
    }

    fn create(&self, place: &Place, mut object: Value) -> (u16, Value) {
        let name = object["metadata"]["name"].as_str().expect("a name").to_owned();
        let key = Self::key(place, &name);
        let mut state = self.lock();
        if state.objects.contains_key(&key) {
            return failure(409, "AlreadyExists", &format!("{} {name} already exists", place.plural));
        }
        if let Err(message) = validate(&object, None) {
            return failure(422, "Invalid", &message);
        }
        // A status is written through its subresource only.
        object.as_object_mut().expect("an object").remove("status");
        state.uids += 1;
        let metadata = object["metadata"].as_object_mut().expect("metadata");
        metadata.insert("uid".to_owned(), json!(format!("uid-{}", state.uids)));
        metadata.insert("creationTimestamp".to_owned(), json!((self.clock)().to_string()));
        metadata.insert("generation".to_owned(), json!(1));
        metadata.insert("resourceVersion".to_owned(), json!(state.next_version()));
        if let Some(namespace) = &place.namespace {
            metadata.insert("namespace".to_owned(), json!(namespace));
        }
        state.objects.insert(key.clone(), object.clone());
        self.happened(&mut state, "ADDED", key, &object);
        (201, object)
    }

    fn replace(&self, place: &Place, object: Value) -> (u16, Value) {
        let key = Self::key(place, place.name.as_deref().expect("a name"));
        let mut state = self.lock();
        let Some(before) = state.objects.get(&key).cloned() else {
            return failure(404, "NotFound", "not found");
        };
        let version = &object["metadata"]["resourceVersion"];
        if !version.is_null() && *version != before["metadata"]["resourceVersion"] {
            return failure(409, "Conflict", "the object has been modified");
        }
        let mut after = object;
        for field in ["uid", "creationTimestamp", "namespace", "generation"] {
            after["metadata"][field] = before["metadata"][field].clone();
        }
        self.store(&mut state, key, after)
    }

    /// Notes an event and wakes those who watch.
    fn happened(&self, state: &mut State, type_: &'static str, key: Key, object: &Value) {
        state.history.push(Event { type_, key, object: object.clone() });
        self.changes.send_replace(state.history.len());
    }

    /// Streams what happens after the version that the query names.
    fn watch(&self, place: Place, query: &BTreeMap<String, String>) -> Response<Body> {
        let version: usize = query.get("resourceVersion").and_then(|text| text.parse().ok()).unwrap_or(0);
        let selector = query.get("labelSelector").cloned().unwrap_or_default();
        let (server, place) = (self.clone(), Arc::new((place, selector)));
        let start = (server, self.changes.subscribe(), version);
        let events = futures::stream::unfold(start, move |(server, mut changes, mut seen)| {
            let place = Arc::clone(&place);
            async move {
                loop {
                    let next = server.lock().history.get(seen).cloned();
                    let Some(event) = next else {
                        changes.changed().await.ok()?;
                        continue;
                    };
                    seen += 1;
                    let (place, selector) = &*place;
                    if place.holds(&event.key) && selects(selector, &event.object) {
                        let line = format!("{}\n", json!({"type": event.type_, "object": event.object}));
                        return Some((Ok::<_, Infallible>(line), (server, changes, seen)));
                    }
                }
            }
        });
        Response::new(Body::from_stream(events))
    }

    /// Waits until the objects look as expected; panics after two minutes.
    pub async fn until(&self, what: &str, expected: impl Fn(&Self) -> bool) {
        let mut changes = self.changes.subscribe();
        let wait = async {
            while !expected(self) {
                changes.changed().await.expect("the server is there");
            }
        };
        let limit = std::time::Duration::from_secs(120);
        assert!(tokio::time::timeout(limit, wait).await.is_ok(), "waited in vain until {what}");
    }

    fn store(&self, state: &mut State, key: Key, mut object: Value) -> (u16, Value) {
        object["metadata"]["resourceVersion"] = json!(state.next_version());
        let is_deleted = !object["metadata"]["deletionTimestamp"].is_null();
        let has_finalizer = object["metadata"]["finalizers"].as_array().is_some_and(|list| !list.is_empty());
        if is_deleted && !has_finalizer {
            state.objects.remove(&key);
            self.happened(state, "DELETED", key, &object);
        } else {
            state.objects.insert(key.clone(), object.clone());
            self.happened(state, "MODIFIED", key, &object);
        }
        (200, object)
    }

    fn patch(&self, place: &Place, patch: &Value, is_apply: bool) -> (u16, Value) {
        let name = place.name.as_deref().expect("a name");
        let key = Self::key(place, name);
        let mut state = self.lock();
        let Some(before) = state.objects.get(&key).cloned() else {
            if is_apply {
                drop(state);
                return self.create(place, patch.clone());
            }
            return failure(404, "NotFound", &format!("{} {name} not found", place.plural));
        };
        let version = &patch["metadata"]["resourceVersion"];
        if !version.is_null() && *version != before["metadata"]["resourceVersion"] {
            return failure(409, "Conflict", "the object has been modified");
        }
        let mut after = before.clone();
        if place.subresource.as_deref() == Some("status") {
            merge(&mut after["status"], &patch["status"]);
        } else {
            merge(&mut after, patch);
            after["status"] = before["status"].clone();
            if before["status"].is_null() {
                after.as_object_mut().expect("an object").remove("status");
            }
        }
        if after["spec"] != before["spec"] {
            after["metadata"]["generation"] =
                json!(before["metadata"]["generation"].as_i64().unwrap_or(1) + 1);
        }
        if let Err(message) = validate(&after, Some(&before)) {
            return failure(422, "Invalid", &message);
        }
        self.store(&mut state, key, after)
    }

    fn delete(&self, place: &Place) -> (u16, Value) {
        let key = Self::key(place, place.name.as_deref().expect("a name"));
        let mut state = self.lock();
        let Some(mut object) = state.objects.get(&key).cloned() else {
            return failure(404, "NotFound", "not found");
        };
        object["metadata"]["deletionTimestamp"] = json!((self.clock)().to_string());
        self.store(&mut state, key, object)
    }

    /// Everything that was written, in order: "METHOD plural/name[/subresource]". Events are left out.
    pub fn writes(&self) -> Vec<String> {
        self.lock().writes.clone()
    }

    /// The objects of a plural.
    pub fn all(&self, plural: &str) -> Vec<Value> {
        let state = self.lock();
        state.objects.iter().filter(|(key, _)| key.1 == plural).map(|(_, object)| object.clone()).collect()
    }

    /// The object of that plural and name.
    pub fn find(&self, plural: &str, name: &str) -> Option<Value> {
        self.all(plural).into_iter().find(|object| object["metadata"]["name"] == name)
    }

    /// The reasons of all events, in order.
    pub fn events(&self) -> Vec<String> {
        self.all("events").iter().filter_map(|event| event["reason"].as_str().map(str::to_owned)).collect()
    }
}
