//! Results that are kept between runs, keyed by a hash of the recipe that makes them.
//!
//! # Guarantees
//! - An entry is either whole or absent: it is made under another name and renamed.
//! - Two programs that want the same entry make it once: the second waits for the first.
//! - A changed recipe has another key; an old entry is never taken for the new one.

use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::Duration,
};

use aws_lc_rs::digest::{Context, SHA256};

use crate::{
    Error, Result,
    error::Named,
    interrupt::{self, Seen},
};

const LOCK_LIMIT: Duration = Duration::from_secs(3600);

/// `~/.cache/holdfast`, or `holdfast` below `XDG_CACHE_HOME`.
pub fn root() -> Result<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => PathBuf::from(
            std::env::var_os("HOME")
                .ok_or_else(|| Error::Machine("neither HOME nor XDG_CACHE_HOME is set".into()))?,
        )
        .join(".cache"),
    };
    let root = base.join("holdfast");
    fs::create_dir_all(&root).named("create", &root)?;
    Ok(root)
}

/// A hash of everything that goes into a result.
#[derive(Clone)]
pub struct Recipe(Context);

impl Recipe {
    /// The recipe of a thing of this kind.
    pub fn new(kind: &str) -> Self {
        Recipe(Context::new(&SHA256)).part(kind)
    }

    /// Adds an ingredient.
    pub fn part(mut self, part: impl AsRef<[u8]>) -> Self {
        let part = part.as_ref();
        self.0.update(&(part.len() as u64).to_le_bytes());
        self.0.update(part);
        self
    }

    /// Adds the content of a file.
    pub fn file(self, path: &Path) -> Result<Self> {
        Ok(self.part(fs::read(path).named("read", path)?))
    }

    /// Adds names and contents of all files below a directory.
    pub fn tree(mut self, directory: &Path) -> Result<Self> {
        let mut entries = fs::read_dir(directory)
            .and_then(|entries| entries.collect::<Result<Vec<_>, _>>())
            .named("list", directory)?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            self = self.part(entry.file_name().as_encoded_bytes());
            self = if path.is_dir() { self.tree(&path)? } else { self.file(&path)? };
        }
        Ok(self)
    }

    /// The first 64 bits, in hexadecimal: enough for a cache, short enough for an image tag.
    pub fn key(&self) -> String {
        self.0.clone().finish().as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// The cached file or directory `NAME-KEY`, made by `make` at the path it is given if it is absent.
pub fn entry(name: &str, recipe: &Recipe, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let path = root()?.join(format!("{name}-{}", recipe.key()));
    let _lock = lock(&path)?;
    if path.exists() {
        return Ok(path);
    }
    let partial = with_suffix(&path, ".partial");
    remove(&partial)?;
    make(&partial)?;
    fs::rename(&partial, &path).named("rename", &partial)?;
    Ok(path)
}

/// Holds the lock beside `path` until the returned file is closed.
pub fn lock(path: &Path) -> Result<File> {
    let name = with_suffix(path, ".lock");
    let file = File::create(&name).named("create", &name)?;
    interrupt::until(&format!("lock {}", name.display()), LOCK_LIMIT, Duration::from_millis(200), || {
        match file.try_lock() {
            Ok(()) => Ok(Seen::Reached(())),
            Err(TryLockError::WouldBlock) => Ok(Seen::NotYet("held by another process".into())),
            Err(TryLockError::Error(source)) => {
                Err(Error::File { action: "lock", path: name.clone(), source })
            }
        }
    })?;
    Ok(file)
}

/// Removes a file or a directory that may be absent.
pub fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match result {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.named("remove", path),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_run_into_each_other() {
        assert_ne!(Recipe::new("x").part("ab").part("c").key(), Recipe::new("x").part("a").part("bc").key());
        assert_eq!(Recipe::new("x").part("ab").key(), Recipe::new("x").part("ab").key());
    }

    #[test]
    fn a_tree_is_told_by_its_names_and_contents() {
        let dir = tempfile::tempdir().unwrap();
        let key = || Recipe::new("t").tree(dir.path()).unwrap().key();
        fs::write(dir.path().join("a"), "1").unwrap();
        let first = key();
        fs::write(dir.path().join("a"), "2").unwrap();
        let second = key();
        fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert!(first != second && second != key());
    }
}
