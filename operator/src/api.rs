//! The few ways in which the operator writes to the API server.
//!
//! # Guarantees
//! - Creating is idempotent: an object that is already there is left as it is.
//! - A status is written only when it differs, so writing one does not start another reconcile.

use std::fmt::Debug;

use holdfast_api::labels;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::core::ObjectMeta;
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::error::{Doing, Error};

/// The name under which the operator owns fields.
pub const FIELD_MANAGER: &str = "holdfast-operator";

/// "Kind namespace/name", for errors and events.
pub fn describe<K: Resource<DynamicType = ()>>(object: &K) -> String {
    let name = object.meta().name.as_deref().unwrap_or("?");
    match &object.meta().namespace {
        Some(namespace) => format!("{} {namespace}/{name}", K::kind(&())),
        None => format!("{} {name}", K::kind(&())),
    }
}

/// Whether an object was made, or had been there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Created {
    /// It was made now.
    Now,
    /// It had been there.
    Before,
}

/// Creates the object unless one of that name exists.
pub async fn create<K>(api: &Api<K>, object: &K) -> Result<Created, Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + Serialize + DeserializeOwned,
{
    let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
    match api.create(&params, object).await {
        Ok(_) => Ok(Created::Now),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(Created::Before),
        Err(error) => Err(error).doing(|| format!("create {}", describe(object))),
    }
}

/// Reads an object that may not exist.
pub async fn get<K>(api: &Api<K>, name: &str) -> Result<Option<K>, Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    api.get_opt(name).await.doing(|| format!("read {} {name}", K::kind(&())))
}

/// Lists the objects with these labels.
pub async fn list<K>(api: &Api<K>, selector: &str) -> Result<Vec<K>, Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let params = ListParams::default().labels(selector);
    let list = api.list(&params).await.doing(|| format!("list {} with labels {selector}", K::plural(&())))?;
    Ok(list.items)
}

/// Deletes an object that may be gone already.
pub async fn delete<K>(api: &Api<K>, name: &str) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let params =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Background), ..DeleteParams::default() };
    match api.delete(name, &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error).doing(|| format!("delete {} {name}", K::kind(&()))),
    }
}

/// Merges a change into an object.
pub async fn merge<K>(api: &Api<K>, name: &str, change: &Value) -> Result<K, Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    api.patch(name, &params, &Patch::Merge(change)).await.doing(|| format!("change {} {name}", K::kind(&())))
}

/// Writes the status if it differs from the one the object has, and only on the version of the object that was
/// read: two controllers that write one status do not undo each other's news. An object deleted meanwhile is no error.
pub async fn write_status<K, S>(api: &Api<K>, object: &K, before: Option<&S>, after: &S) -> Result<(), Error>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned,
    S: Serialize + PartialEq,
{
    if before == Some(after) {
        return Ok(());
    }
    let name = object.name_any();
    // Replacing the whole status, so that what is left out disappears: a merge would keep it.
    let after = serde_json::to_value(after).unwrap_or(Value::Null);
    let before = before.and_then(|status| serde_json::to_value(status).ok()).unwrap_or(Value::Null);
    let change = json!({
        "metadata": {"resourceVersion": object.meta().resource_version},
        "status": replacing(&before, after),
    });
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match api.patch_status(&name, &params, &Patch::Merge(&change)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        Err(error) => Err(error).doing(|| format!("write the status of {}", describe(object))),
    }
}

/// A merge patch that turns `before` into `after`: keys that went get a null.
fn replacing(before: &Value, after: Value) -> Value {
    match (before, after) {
        (Value::Object(before), Value::Object(mut after)) => {
            for (key, old) in before {
                let new = after.remove(key);
                after.insert(key.clone(), new.map_or(Value::Null, |new| replacing(old, new)));
            }
            Value::Object(after)
        }
        (_, after) => after,
    }
}

/// Metadata of an object that the operator makes.
pub fn managed<'a>(
    namespace: Option<&str>,
    name: String,
    with_labels: impl IntoIterator<Item = (&'a str, String)>,
) -> ObjectMeta {
    let mut all: std::collections::BTreeMap<String, String> =
        with_labels.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    all.insert(labels::MANAGED_BY.to_owned(), labels::OPERATOR.to_owned());
    ObjectMeta {
        name: Some(name),
        namespace: namespace.map(str::to_owned),
        labels: Some(all),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_patch_removes_what_is_no_longer_said() {
        let before = json!({"a": 1, "gone": 2, "nested": {"x": 1, "gone": true}, "list": [1, 2]});
        let after = json!({"a": 1, "nested": {"x": 2}, "list": [3]});
        assert_eq!(
            replacing(&before, after),
            json!({"a": 1, "gone": null, "nested": {"x": 2, "gone": null}, "list": [3]})
        );
        assert_eq!(replacing(&Value::Null, json!({"a": 1})), json!({"a": 1}));
    }
}
