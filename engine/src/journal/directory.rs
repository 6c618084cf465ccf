//! The journals of a node: a directory with a file for each volume and grant.
//!
//! `NAME.GRANT.journal` is in use, or was when the node went down; `NAME.GRANT.MS.lost` was set aside at that time (in
//! milliseconds since the Unix epoch), because its grant had been revoked while it held what was not in the store.
//!
//! # Guarantees
//! - A file that was set aside is never opened as a journal again. It is kept for a while, and as long as all of them
//!   are not too large.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Journal, JournalError, JournalFile, Owner, Patience, disk};
use crate::ids::GrantId;

const JOURNAL: &str = "journal";
const LOST: &str = "lost";
/// How long making a file may take: a few seconds on a slow disk.
const MAKING: Duration = Duration::from_secs(60);

/// Why the directory, or a file in it, cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum JournalsError {
    /// A file or the directory.
    #[error("the journal {} cannot be used: {source}", path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What a file holds.
    #[error("{source} ({})", path.display())]
    Journal {
        /// Which.
        path: PathBuf,
        /// Why.
        source: JournalError,
    },
}

/// Which journal: the name of its volume, and its grant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct JournalName {
    /// The volume's name on this node: anything that fits a file name, without a dot.
    pub volume: String,
    /// The grant.
    pub grant: GrantId,
}

impl fmt::Display for JournalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.volume, self.grant)
    }
}

/// The directory.
#[derive(Debug, Clone)]
pub struct Journals {
    dir: PathBuf,
    len_bytes: u64,
    patience: Patience,
}

impl Journals {
    /// The journals in `dir`, which is made and belongs to this process; new ones have `len_bytes`. What a predecessor
    /// had not finished making is removed.
    pub fn new(dir: PathBuf, len_bytes: u64, patience: Patience) -> Result<Self, JournalsError> {
        if let Err(source) = std::fs::create_dir_all(&dir) {
            return Err(JournalsError::Path { path: dir, source });
        }
        let journals = Self { dir, len_bytes, patience };
        for (file, _) in journals.files()? {
            let path = journals.dir.join(file);
            if path.extension().is_some_and(|extension| extension == disk::UNFINISHED) {
                remove_file(&path)?;
            }
        }
        Ok(journals)
    }

    fn path(&self, name: &JournalName) -> PathBuf {
        self.dir.join(format!("{name}.{JOURNAL}"))
    }

    /// Whether there is a journal of this name.
    pub fn contains(&self, name: &JournalName) -> bool {
        self.path(name).exists()
    }

    /// The journals that are there, but for those set aside.
    pub fn list(&self) -> Result<Vec<JournalName>, JournalsError> {
        let parse = |file: &str| {
            let (volume, grant) = file.strip_suffix(JOURNAL)?.strip_suffix('.')?.rsplit_once('.')?;
            Some(JournalName { volume: volume.to_owned(), grant: grant.parse().ok()? })
        };
        Ok(self.files()?.iter().filter_map(|(file, _)| parse(file)).collect())
    }

    /// All files with their sizes.
    fn files(&self) -> Result<Vec<(String, u64)>, JournalsError> {
        let list = || {
            let mut files = Vec::new();
            for entry in std::fs::read_dir(&self.dir)? {
                let entry = entry?;
                if let Ok(name) = entry.file_name().into_string() {
                    files.push((name, entry.metadata()?.len()));
                }
            }
            io::Result::Ok(files)
        };
        list().map_err(|source| JournalsError::Path { path: self.dir.clone(), source })
    }

    /// Opens the journal, which is made if it is not there.
    pub async fn open(&self, name: &JournalName, owner: Owner) -> Result<Journal, JournalsError> {
        let (path, len_bytes) = (self.path(name), self.len_bytes);
        let opened = tokio::task::spawn_blocking(move || {
            let opened = match JournalFile::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    JournalFile::create(&path, len_bytes).and_then(|()| JournalFile::open(&path))
                }
                opened => opened,
            };
            opened.map_err(|source| JournalsError::Path { path: path.clone(), source })
        });
        let failed = |error: tokio::task::JoinError| JournalsError::Path {
            path: self.path(name),
            source: io::Error::other(error),
        };
        let late = |_| JournalsError::Path {
            path: self.path(name),
            source: io::Error::new(
                io::ErrorKind::TimedOut,
                format!("it could not be made within {MAKING:?}"),
            ),
        };
        let file = tokio::time::timeout(MAKING, opened).await.map_err(late)?.map_err(failed)??;
        let journal = Journal::open(std::sync::Arc::new(file), owner, self.patience).await;
        journal.map_err(|source| JournalsError::Journal { path: self.path(name), source })
    }

    /// Removes the journal, of which the log has everything. One that is not there is removed already.
    pub fn remove(&self, name: &JournalName) -> Result<(), JournalsError> {
        let path = self.path(name);
        match std::fs::remove_file(&path).and_then(|()| disk::sync_dir(&path)) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(JournalsError::Path { path, source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Sets the journal aside, whose grant was revoked; returns where it is now.
    pub fn set_aside(&self, name: &JournalName, now_ms: u64) -> Result<PathBuf, JournalsError> {
        let (from, to) = (self.path(name), self.dir.join(format!("{name}.{now_ms}.{LOST}")));
        match std::fs::rename(&from, &to).and_then(|()| disk::sync_dir(&to)) {
            Ok(()) => Ok(to),
            Err(source) => Err(JournalsError::Path { path: from, source }),
        }
    }

    /// Removes what was set aside longer than `keep` ago, and the oldest of it while all together have more than
    /// `bytes`. Returns how many are left.
    pub fn expire(&self, now_ms: u64, keep: Duration, bytes: u64) -> Result<usize, JournalsError> {
        let set_aside_ms = |file: &str| -> Option<u64> {
            file.strip_suffix(LOST)?.strip_suffix('.')?.rsplit_once('.')?.1.parse().ok()
        };
        let files = self.files()?;
        let mut lost: Vec<(u64, &str, u64)> =
            files.iter().filter_map(|(file, len)| Some((set_aside_ms(file)?, file.as_str(), *len))).collect();
        lost.sort_unstable();
        let mut total: u64 = lost.iter().map(|(_, _, len)| len).sum();
        let mut left = lost.len();
        for (ms, file, len) in lost {
            let old = u128::from(now_ms.saturating_sub(ms)) > keep.as_millis();
            if !old && total <= bytes {
                break;
            }
            let path = self.dir.join(file);
            remove_file(&path)?;
            tracing::warn!(path = %path.display(), "a journal that was set aside is removed");
            total -= len;
            left -= 1;
        }
        Ok(left)
    }
}

fn remove_file(path: &Path) -> Result<(), JournalsError> {
    std::fs::remove_file(path).map_err(|source| JournalsError::Path { path: path.into(), source })
}
