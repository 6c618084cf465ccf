//! The journals of a node: a directory with a file for each volume and grant.
//!
//! `NAME.GRANT.journal` is in use, or was when the node went down; `NAME.GRANT.MS.lost` was set aside at that time (in
//! milliseconds since the Unix epoch), because its grant had been revoked while it held what was not in the store.
//!
//! # Guarantees
//! - A journal that holds what the log has not is set aside when it ends, and never removed.
//! - A file that was set aside is never opened as a journal again. It is kept for a while, and as long as all of them
//!   are not too large.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::files::{JournalDir, JournalFiles};
use super::open::in_time;
use super::{Journal, JournalError, JournaledBuffer, Owner, Patience, Waiting};
use crate::buffer::DirtyBuffer;
use crate::ids::GrantId;

const JOURNAL: &str = "journal";
const LOST: &str = "lost";
/// How long the directory may take for one thing, the longest of which is to make a file: a few seconds on a slow disk.
const LIMIT: Duration = Duration::from_secs(60);

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

impl JournalName {
    /// The file that it is.
    pub fn file(&self) -> String {
        format!("{self}.{JOURNAL}")
    }

    /// Which journal a file is; none if it is no journal, or was set aside.
    pub fn of_file(file: &str) -> Option<Self> {
        let (volume, grant) = file.strip_suffix(JOURNAL)?.strip_suffix('.')?.rsplit_once('.')?;
        Some(Self { volume: volume.to_owned(), grant: grant.parse().ok()? })
    }
}

/// What became of a journal that nobody uses any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The log has all of it.
    Removed,
    /// It holds what the log has not.
    SetAside(Waiting),
}

/// The directory.
#[derive(Debug, Clone)]
pub struct Journals {
    dir: Arc<dyn JournalDir>,
    len_bytes: u64,
    patience: Patience,
}

impl Journals {
    /// The journals in `dir`, which is made and belongs to this process; new ones have `len_bytes`. What a predecessor
    /// had not finished making is removed.
    pub fn new(dir: PathBuf, len_bytes: u64, patience: Patience) -> Result<Self, JournalsError> {
        match JournalFiles::new(dir.clone()) {
            Ok(files) => Ok(Self::over(Arc::new(files), len_bytes, patience)),
            Err(source) => Err(JournalsError::Path { path: dir, source }),
        }
    }

    /// The journals in a directory that need not be one of this machine's.
    pub fn over(dir: Arc<dyn JournalDir>, len_bytes: u64, patience: Patience) -> Self {
        Self { dir, len_bytes, patience }
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// Does something with a file, or with the directory if `file` is empty.
    async fn reach<T>(
        &self,
        file: &str,
        work: impl Future<Output = io::Result<T>>,
    ) -> Result<T, JournalsError> {
        in_time(LIMIT, work).await.map_err(|source| JournalsError::Path { path: self.path(file), source })
    }

    async fn files(&self) -> Result<Vec<(String, u64)>, JournalsError> {
        self.reach("", self.dir.list()).await
    }

    /// Whether there is a journal of this name.
    pub async fn contains(&self, name: &JournalName) -> Result<bool, JournalsError> {
        Ok(self.list().await?.contains(name))
    }

    /// The journals that are there, but for those set aside.
    pub async fn list(&self) -> Result<Vec<JournalName>, JournalsError> {
        Ok(self.files().await?.iter().filter_map(|(file, _)| JournalName::of_file(file)).collect())
    }

    /// Opens the journal, which is made if it is not there.
    pub async fn open(&self, name: &JournalName, owner: Owner) -> Result<Journal, JournalsError> {
        let file = name.file();
        let opened = async {
            match self.dir.open(&file).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    self.dir.create(&file, self.len_bytes).await?;
                    self.dir.open(&file).await
                }
                opened => opened,
            }
        };
        let disk = self.reach(&file, opened).await?;
        let journal = Journal::open(disk, owner, self.patience).await;
        journal.map_err(|source| JournalsError::Journal { path: self.path(&file), source })
    }

    /// The dirty buffer `inner` with the journal of this name, if it is there, or is `wanted`: flushes end there if it
    /// is. Fails if it is there and cannot be read, since it may hold what was flushed; if it cannot be made, flushes
    /// wait for the log.
    pub async fn buffer(
        &self,
        name: &JournalName,
        owner: Owner,
        inner: Arc<dyn DirtyBuffer>,
        wanted: bool,
    ) -> Result<JournaledBuffer, JournalsError> {
        let there = self.contains(name).await?;
        let journal = match there || wanted {
            true => match self.open(name, owner).await {
                Ok(journal) => Some(journal),
                Err(error) if there => return Err(error),
                Err(error) => {
                    tracing::warn!(
                        volume = name.volume, %error,
                        "the volume has no journal: its flushes wait for the store until it is staged again"
                    );
                    None
                }
            },
            false => None,
        };
        let buffer = JournaledBuffer::new(inner, journal);
        if !wanted {
            buffer.leave();
        }
        Ok(buffer)
    }

    /// Ends a journal that nobody uses any more: removes it if the log has all of it, else sets it aside.
    pub async fn end(
        &self,
        name: &JournalName,
        journal: &Journal,
        now_ms: u64,
    ) -> Result<Ended, JournalsError> {
        let waiting = journal.waiting();
        if waiting.entries == 0 {
            self.remove(name).await?;
            return Ok(Ended::Removed);
        }
        let path = self.set_aside(name, now_ms).await?;
        tracing::warn!(
            volume = name.volume, grant = %name.grant, entries = waiting.entries, bytes = waiting.bytes,
            path = %path.display(),
            "the volume was taken back before its journal was in the store: up to so many writes are lost; the journal \
             is set aside"
        );
        Ok(Ended::SetAside(waiting))
    }

    /// Removes the journal, of which nobody wants anything. One that is not there is removed already.
    pub async fn remove(&self, name: &JournalName) -> Result<(), JournalsError> {
        let file = name.file();
        let remove = async {
            match self.dir.remove(&file).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            }
        };
        self.reach(&file, remove).await
    }

    /// Sets the journal aside, whose grant was revoked; returns where it is now.
    pub async fn set_aside(&self, name: &JournalName, now_ms: u64) -> Result<PathBuf, JournalsError> {
        let (from, to) = (name.file(), format!("{name}.{now_ms}.{LOST}"));
        self.reach(&from, self.dir.rename(&from, &to)).await?;
        Ok(self.path(&to))
    }

    /// Removes what was set aside longer than `keep` ago, and the oldest of it while all together have more than
    /// `bytes`. Returns how many are left.
    pub async fn expire(&self, now_ms: u64, keep: Duration, bytes: u64) -> Result<usize, JournalsError> {
        let set_aside_ms = |file: &str| -> Option<u64> {
            file.strip_suffix(LOST)?.strip_suffix('.')?.rsplit_once('.')?.1.parse().ok()
        };
        let files = self.files().await?;
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
            self.reach(file, self.dir.remove(file)).await?;
            tracing::warn!(path = %self.path(file).display(), "a journal that was set aside is removed");
            total -= len;
            left -= 1;
        }
        Ok(left)
    }
}
