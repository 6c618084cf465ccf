//! Where the volumes of this node are mounted.
//!
//! The node service has to know, also after a restart: to refuse a second path for a volume that may have only one, and
//! to take all mounts out of sight when a volume's session is over.
//!
//! # Crash behaviour
//! A path is noted before it is mounted and struck out after it was unmounted, so what is mounted is noted. A record is
//! one small file that is replaced as a whole.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::capability::Form;
use crate::handles::VolumeHandle;

/// What is at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// The device.
    Block,
    /// The file system.
    Filesystem,
}

impl Kind {
    /// What a volume of this form is at its paths.
    pub fn of(form: &Form) -> Self {
        match form {
            Form::Block => Self::Block,
            Form::Filesystem { .. } => Self::Filesystem,
        }
    }
}

/// The paths of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// Where it is staged, and as what.
    pub staging: Option<(PathBuf, Kind)>,
    /// Where it is published.
    pub targets: BTreeMap<PathBuf, Kind>,
}

impl Record {
    /// All paths, staging last.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.targets.keys().chain(self.staging.iter().map(|(path, _)| path))
    }

    /// What is at `path`, if the volume is there.
    pub fn kind(&self, path: &Path) -> Option<Kind> {
        let staged = || self.staging.as_ref().filter(|(staging, _)| staging == path).map(|(_, kind)| *kind);
        self.targets.get(path).copied().or_else(staged)
    }
}

/// The records of this node.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

/// A record cannot be read or written.
#[derive(Debug, thiserror::Error)]
#[error("the record of mounts {} cannot be used: {source}", path.display())]
pub struct RecordError {
    /// The file.
    pub path: PathBuf,
    /// What happened.
    pub source: io::Error,
}

impl Records {
    /// The records in `dir`, which is made.
    pub fn open(dir: PathBuf) -> Result<Self, RecordError> {
        match std::fs::create_dir_all(&dir) {
            Ok(()) => Ok(Self { dir }),
            Err(source) => Err(RecordError { path: dir, source }),
        }
    }

    /// The record of `volume`; an empty one if it is nowhere.
    pub fn load(&self, volume: VolumeHandle) -> Result<Record, RecordError> {
        let path = self.path(volume);
        let read = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::from),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(error),
        };
        read.map_err(|source| RecordError { path, source })
    }

    /// Replaces the record of `volume`; an empty one is removed.
    pub fn save(&self, volume: VolumeHandle, record: &Record) -> Result<(), RecordError> {
        let path = self.path(volume);
        let written = if *record == Record::default() {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                Ok(()) | Err(_) => Ok(()),
            }
        } else {
            replace(&path, record)
        };
        written.map_err(|source| RecordError { path, source })
    }

    fn path(&self, volume: VolumeHandle) -> PathBuf {
        self.dir.join(format!("{volume}.json"))
    }
}

/// Mounts do not outlive the machine, so a record need not outlive a loss of power: no fsync.
fn replace(path: &Path, record: &Record) -> io::Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, serde_json::to_vec(record)?)?;
    std::fs::rename(&new, path)
}

#[cfg(test)]
mod tests {
    use holdfast_engine::ids::{PoolId, VolumeId};

    use super::*;

    #[test]
    fn a_record_is_found_again_and_an_empty_one_leaves_nothing() {
        let dir = tempfile::tempdir().expect("a directory");
        let volume = VolumeHandle { pool: PoolId([1; 16]), volume: VolumeId([2; 16]) };
        let records = Records::open(dir.path().join("mounts")).expect("made");
        assert_eq!(records.load(volume).expect("read"), Record::default());

        let record = Record {
            staging: Some(("/staging".into(), Kind::Filesystem)),
            targets: BTreeMap::from([("/pod/a".into(), Kind::Filesystem), ("/pod/b".into(), Kind::Block)]),
        };
        records.save(volume, &record).expect("written");
        let again = Records::open(dir.path().join("mounts")).expect("made");
        let loaded = again.load(volume).expect("read");
        assert_eq!(loaded, record);
        assert_eq!(loaded.kind(Path::new("/staging")), Some(Kind::Filesystem));
        assert_eq!(loaded.kind(Path::new("/pod/b")), Some(Kind::Block));
        assert_eq!(loaded.kind(Path::new("/pod")), None);

        records.save(volume, &Record::default()).expect("removed");
        assert_eq!(std::fs::read_dir(dir.path().join("mounts")).expect("listed").count(), 0);
    }
}
