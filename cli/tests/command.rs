//! The command as a person uses it, on a pool in a directory.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// A pool file and the directory that it names.
struct Pool {
    directory: tempfile::TempDir,
}

impl Pool {
    /// A pool that nobody has opened yet, encrypted under `key` if one is given.
    fn new(key: Option<&str>) -> Self {
        let pool = Self { directory: tempfile::tempdir().unwrap() };
        pool.configure(key);
        pool
    }

    fn configure(&self, key: Option<&str>) {
        let mut yaml = format!("url: file://{}\n", self.path().join("pool").display());
        if let Some(key) = key {
            yaml.push_str(&format!("encryption: {{key: \"{key}\"}}\n"));
        }
        std::fs::create_dir_all(self.path().join("files")).unwrap();
        std::fs::write(self.path().join("files/main.yaml"), yaml).unwrap();
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_holdfast"))
            .args(arguments)
            .arg("--pools-dir")
            .arg(self.path().join("files"))
            .env_remove("RUST_LOG")
            .output()
            .unwrap()
    }

    /// What a command that succeeds prints.
    fn text(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Value {
        let text = self.text(&[arguments, &["-o", "json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {text}"))
    }

    /// What a command that fails says.
    fn error(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?} succeeded");
        String::from_utf8(output.stderr).unwrap()
    }

    fn handle(&self, arguments: &[&str]) -> String {
        self.json(arguments)["handle"].as_str().unwrap().to_owned()
    }
}

fn key(byte: u8) -> String {
    format!("{byte:02x}").repeat(32)
}

#[test]
fn a_volume_lives_from_its_creation_to_its_deletion() {
    let pool = Pool::new(Some(&key(7)));
    let volume = pool.handle(&["volume", "create", "data", "--size", "64Mi"]);
    assert_eq!(pool.text(&["volume", "create", "data", "--size", "64Mi"]).trim(), volume);
    let snapshot = pool.handle(&["snapshot", "create", "data", "monday"]);
    let clone = pool.handle(&["volume", "create", "copy", "--from", &snapshot, "--codec", "zstd"]);

    let listed = pool.json(&["volume", "list"]);
    let names: Vec<_> = listed.as_array().unwrap().iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["copy", "data"]);
    assert_eq!(listed[1]["snapshots"], 1);
    let shown = pool.json(&["volume", "show", &clone]);
    assert_eq!(shown["source"], Value::from(snapshot.as_str()));
    assert_eq!((&shown["codec"], &shown["sizeBytes"]), (&Value::from("zstd"), &Value::from(64 << 20)));
    assert_eq!(shown["encrypted"], true);

    pool.text(&["volume", "resize", "data", "128Mi"]);
    assert_eq!(pool.json(&["volume", "show", "data"])["sizeBytes"], 128 << 20);
    let snapshots = pool.json(&["snapshot", "list", "data"]);
    assert_eq!((&snapshots[0]["name"], &snapshots[0]["ready"]), (&Value::from("monday"), &Value::from(true)));

    assert!(pool.error(&["volume", "delete", "data"]).contains("--yes"));
    pool.text(&["volume", "delete", "data", "--yes"]);
    assert!(pool.error(&["volume", "show", "data"]).contains("no volume named \"data\""));
    // A deleted volume's snapshots stay.
    assert_eq!(pool.json(&["snapshot", "list"])[0]["handle"], Value::from(snapshot.as_str()));
    assert!(pool.error(&["snapshot", "delete", &snapshot]).contains("--yes"));
    pool.text(&["snapshot", "delete", &snapshot, "--yes"]);
    assert_eq!(pool.json(&["snapshot", "list"]), Value::Array(Vec::new()));
    assert!(pool.text(&["volume", "list"]).starts_with("NAME"));
}

#[test]
fn every_object_of_a_pool_can_be_inspected() {
    let pool = Pool::new(Some(&key(7)));
    pool.text(&["volume", "create", "data", "--size", "64Mi"]);
    pool.text(&["snapshot", "create", "data", "monday"]);
    let root = pool.path().join("pool");
    let mut kinds = std::collections::BTreeSet::new();
    let mut directories = vec![root.clone()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let key = path.strip_prefix(&root).unwrap().to_str().unwrap();
            let shown = pool.json(&["inspect", key]);
            assert_eq!(shown["key"], key);
            kinds.insert(shown["kind"].as_str().unwrap().to_owned());
        }
    }
    for kind in ["description", "record", "root", "snapshot map"] {
        assert!(kinds.contains(kind), "{kind} is not among {kinds:?}");
    }
    assert!(pool.error(&["inspect", "holdfast"]).contains("not a key"));
}

#[test]
fn a_volume_is_shown_with_the_parameters_that_it_has_now() {
    let pool = Pool::new(None);
    let handle = pool.handle(&["volume", "create", "data", "--size", "64Mi"]);
    let volume = handle.split('-').nth(1).unwrap();
    // As the driver puts a change.
    let change = serde_json::json!({
        "volume": volume, "parameters": {"durability": "journal"}, "createdMs": 1, "nonce": key(3)[..32],
    });
    let changed = format!("volumes/{volume}/parameters/{:020}", 1);
    let path = pool.path().join("pool").join(&changed);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, change.to_string()).unwrap();
    assert_eq!(pool.json(&["volume", "show", "data"])["parameters"]["durability"], "journal");
    assert_eq!(pool.json(&["inspect", &changed])["content"], change);
}

#[test]
fn a_key_is_rotated_without_locking_anybody_out() {
    let pool = Pool::new(Some(&key(7)));
    pool.text(&["volume", "create", "data", "--size", "64Mi"]);
    let new_key = pool.path().join("new-key");
    std::fs::write(&new_key, key(8) + "\n").unwrap();
    pool.text(&["pool", "rotate-key", "main", "--new-key-file", new_key.to_str().unwrap()]);
    pool.text(&["volume", "show", "data"]);
    pool.configure(Some(&key(8)));
    pool.text(&["volume", "show", "data"]);
    pool.text(&["pool", "retire-keys", "main", "--yes"]);
    pool.configure(Some(&key(7)));
    let refused = pool.error(&["volume", "show", "data"]);
    assert!(refused.contains("pool main") && !refused.contains(&key(7)), "{refused}");
}

#[test]
fn what_is_wrong_with_a_pool_is_said_by_its_name() {
    let pool = Pool::new(None);
    assert!(pool.error(&["pool", "show"]).contains("no pool at its URL yet"));
    assert!(pool.text(&["pool", "check"]).contains("ok"));
    pool.configure(Some(&key(7)));
    let output = pool.run(&["pool", "check"]);
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("is not encrypted"));
    let elsewhere = pool.error(&["pool", "check", "--file-root", "/proc"]);
    assert!(elsewhere.contains("1 of 1 pools"), "{elsewhere}");
}

#[test]
fn a_snapshot_is_verified_and_is_no_archived_point() {
    let pool = Pool::new(None);
    pool.text(&["volume", "create", "data", "--size", "64Mi"]);
    let snapshot = pool.handle(&["snapshot", "create", "data", "monday"]);
    let verified = pool.json(&["archive", "verify", &snapshot]);
    assert_eq!((&verified["goodBytes"], &verified["damaged"]), (&Value::from(0), &Value::Array(Vec::new())));
    // It is no archived point, so a target that held it would not show it.
    assert_eq!(pool.json(&["archive", "list"]), Value::Array(Vec::new()));
    assert!(pool.error(&["archive", "verify", "monday"]).contains("no snapshot's handle"));
}

#[test]
fn points_are_deleted_but_for_the_one_that_the_next_run_builds_on() {
    let pool = Pool::new(None);
    pool.text(&["volume", "create", "data", "--size", "64Mi"]);
    let target = pool.path().join("offsite.yaml");
    let url = format!("url: file://{}\n", pool.path().join("archive").display());
    std::fs::write(&target, url).unwrap();
    let target = target.to_str().unwrap();
    let source = r#"{"clusterUID": "u", "namespace": "shop", "claimName": "data", "volumeMode": "Block"}"#;
    let archived = ["monday", "tuesday"].map(|name| {
        let snapshot = pool.handle(&["snapshot", "create", "data", name]);
        let arguments = ["job", "archive", "--target-file", target, "--source-handle", &snapshot];
        let point = ["--point", name, "--source-json", source, "--point-in-time", "2026-11-23T05:00:00Z"];
        let done: Value = serde_json::from_str(&pool.text(&[&arguments[..], &point[..]].concat())).unwrap();
        done["handle"].as_str().unwrap().to_owned()
    });
    let delete = |what: &'static str, handle| [what, "delete", handle, "--yes", "--target-file", target];
    let [older, newest] = &archived;
    let refused = pool.error(&delete("snapshot", older));
    assert!(refused.contains("holdfast archive delete"), "{refused}");
    assert!(pool.error(&delete("archive", newest)).contains("newest point"));
    pool.text(&delete("archive", older));
    let left = pool.json(&["archive", "list", "offsite", "--target-file", target]);
    assert_eq!((left.as_array().unwrap().len(), &left[0]["handle"]), (1, &Value::from(newest.as_str())));

    let snapshot = pool.json(&["snapshot", "list", "data"])[0]["handle"].as_str().unwrap().to_owned();
    assert!(pool.error(&delete("archive", &snapshot)).contains("no archived point"));
    let archive = newest.rsplit_once('-').unwrap().0;
    pool.text(&delete("volume", archive));
    pool.text(&delete("archive", newest));
    assert_eq!(pool.json(&["archive", "list", "offsite", "--target-file", target]), Value::Array(vec![]));
}

#[test]
fn a_damaged_volume_is_told_and_rebuilt() {
    let pool = Pool::new(Some(&key(7)));
    let volume = pool.handle(&["volume", "create", "data", "--size", "64Mi"]);
    let snapshot = pool.handle(&["snapshot", "create", "data", "monday"]);
    let scrubbed = pool.json(&["volume", "scrub", "data"]);
    assert_eq!(
        (&scrubbed["handle"], &scrubbed["damage"]),
        (&Value::from(volume.as_str()), &Value::Array(vec![]))
    );

    assert!(pool.error(&["volume", "repair", "data", "--from", "monday"]).contains("no snapshot's handle"));
    assert!(pool.error(&["volume", "repair", "data", "--from", &snapshot]).contains("no copy of a snapshot"));

    let id = volume.split('-').nth(1).unwrap();
    let roots = pool.path().join("pool/volumes").join(id).join("root");
    let mut keys: Vec<_> = std::fs::read_dir(&roots).unwrap().map(|entry| entry.unwrap().path()).collect();
    keys.sort();
    let newest = keys.last().unwrap();
    let mut body = std::fs::read(newest).unwrap();
    body[100] ^= 1;
    std::fs::write(newest, body).unwrap();

    let output = pool.run(&["volume", "scrub", "data", "-o", "json"]);
    assert!(!output.status.success());
    let scrubbed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(scrubbed["damage"][0]["fault"], "checksum");
    assert!(scrubbed["unopenable"].as_str().unwrap().contains("root"));
    assert!(pool.error(&["volume", "show", "data"]).contains("root"));

    assert!(pool.error(&["volume", "rebuild", "data", "data"]).contains("exists already"));
    let rebuilt = pool.json(&["volume", "rebuild", "data", "again"]);
    assert_eq!((&rebuilt["sizeBytes"], &rebuilt["lost"]), (&Value::from(64 << 20), &Value::Array(vec![])));
    assert_eq!(rebuilt["map"]["method"], "replayed");
    let again = pool.json(&["volume", "show", "again"]);
    assert_eq!(again["parameters"]["rebuiltFrom"], Value::from(volume.as_str()));
}
