//! Which records take effect, and what they do to the control state: one pure function, the same for whoever appends
//! and whoever replays.
//!
//! # Guarantees
//! - A record whose predecessor is not the last one that took effect, or that is not legal on the state it meets, is
//!   *inert*: it changes nothing, and everybody who replays it agrees on that.
//! - At most one session is current, and it stands under the grant in force. A superseded session's records are
//!   inert from the record on that ended it.

use super::{Control, Grant, GrantMode, Op, Reader, Record, Session, Snapshot};
use crate::ids::{ObjectId, RecordNumber, SessionId, SnapshotId};

/// Why a record has no effect.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Inert {
    /// Another record took effect since its writer looked.
    #[error("another record came first")]
    NotNext,
    /// Its session is not the current one.
    #[error("its session is over")]
    SessionOver,
    /// A session is open, and only the owner may do this now.
    #[error("the volume is open on another host")]
    SessionOpen,
    /// The grant it opens under is not in force.
    #[error("its grant is not in force")]
    NotGranted,
    /// Another node holds the volume.
    #[error("the volume is granted to {node}")]
    Granted {
        /// The holder.
        node: String,
    },
    /// The volume was created already.
    #[error("the volume exists already")]
    Exists,
    /// The volume is deleted, or was never created.
    #[error("the volume is deleted")]
    Dead,
    /// A snapshot of this name exists.
    #[error("a snapshot named {name:?} exists already")]
    SnapshotExists {
        /// The name.
        name: String,
    },
    /// There is no such snapshot.
    #[error("there is no snapshot {snapshot}")]
    NoSuchSnapshot {
        /// Which.
        snapshot: SnapshotId,
    },
    /// A volume never shrinks.
    #[error("a volume of {size_bytes} bytes cannot shrink to {asked_bytes} bytes")]
    Shrinks {
        /// Its size.
        size_bytes: u64,
        /// The size asked for.
        asked_bytes: u64,
    },
    /// The snapshot's map was rewritten meanwhile.
    #[error("the map of snapshot {snapshot} was rewritten meanwhile")]
    Generation {
        /// Which.
        snapshot: SnapshotId,
    },
    /// The archive run may not commit any more.
    #[error("the archive run {run} has ended")]
    RunEnded {
        /// The run.
        run: ObjectId,
    },
    /// Its parts do not go together.
    #[error("malformed: {reason}")]
    Malformed {
        /// Why.
        reason: &'static str,
    },
}

/// Who may speak at a place in a record: what [`Control::check`] carries from op to op.
struct Floor {
    grant: ObjectId,
    session: SessionId,
    maintain: bool,
}

impl Floor {
    fn owned(&self, record: &Record) -> Result<(), Inert> {
        if self.maintain || (!self.session.is_none() && self.session == record.session) {
            Ok(())
        } else {
            Err(Inert::SessionOver)
        }
    }
}

impl Control {
    /// Whether `record` is legal on this state.
    pub fn check(&self, record: &Record) -> Result<(), Inert> {
        if record.prev != self.last {
            return Err(Inert::NotNext);
        }
        let mut floor = Floor {
            grant: self.grant.as_ref().map_or(ObjectId::NONE, |g| g.id),
            session: self.session.as_ref().map_or(SessionId::NONE, |s| s.id),
            maintain: false,
        };
        for (place, op) in record.ops.iter().enumerate() {
            self.check_op(record, place, op, &mut floor)?;
        }
        Ok(())
    }

    fn check_op(&self, record: &Record, place: usize, op: &Op, floor: &mut Floor) -> Result<(), Inert> {
        let alive = || if self.dead || self.last.is_none() { Err(Inert::Dead) } else { Ok(()) };
        match op {
            Op::Create { .. } if self.last.is_none() && !self.dead => Ok(()),
            Op::Create { .. } => Err(if self.dead { Inert::Dead } else { Inert::Exists }),
            Op::Dead if self.last.is_none() => Ok(()),
            Op::Dead => {
                alive()?;
                match (&self.grant, self.readers.first()) {
                    (Some(Grant { node, .. }), _) | (None, Some(Reader { node, .. })) => {
                        Err(Inert::Granted { node: node.clone() })
                    }
                    (None, None) => floor.owned(record),
                }
            }
            Op::Grant { mode, .. } => self.check_grant(*mode, floor),
            Op::Revoke { .. } => Ok(()),
            Op::Open { grant, resumes, .. } => {
                if record.session != record.id {
                    return Err(Inert::Malformed { reason: "an Open names another session than itself" });
                }
                if floor.grant.is_none() || floor.grant != *grant {
                    return Err(Inert::NotGranted);
                }
                if floor.session != *resumes {
                    return Err(Inert::SessionOpen);
                }
                floor.session = record.id;
                Ok(())
            }
            Op::Close => {
                if floor.session.is_none() || floor.session != record.session {
                    return Err(Inert::SessionOver);
                }
                floor.session = SessionId::NONE;
                Ok(())
            }
            Op::Maintain => {
                if place != 0 || !record.session.is_none() {
                    return Err(Inert::Malformed {
                        reason: "a Maintain comes first, in a record of no session",
                    });
                }
                if !floor.session.is_none() {
                    return Err(Inert::SessionOpen);
                }
                floor.maintain = true;
                Ok(())
            }
            Op::Snapshot { name, .. } => {
                alive()?;
                floor.owned(record)?;
                if self.snapshot_named(name).is_some() {
                    return Err(Inert::SnapshotExists { name: name.clone() });
                }
                let before = record.ops[..place].iter().any(|op| matches!(op, Op::Snapshot { .. }));
                if before {
                    return Err(Inert::Malformed { reason: "two snapshots in one record" });
                }
                Ok(())
            }
            Op::DeleteSnapshot { snapshot } | Op::Annotate { snapshot, .. } => {
                floor.owned(record)?;
                self.live_snapshot(*snapshot).map(|_| ())
            }
            Op::ForgetSnapshot { snapshot } => {
                floor.owned(record)?;
                match self.snapshots.get(snapshot) {
                    Some(found) if found.deleted => Ok(()),
                    Some(_) | None => Err(Inert::NoSuchSnapshot { snapshot: *snapshot }),
                }
            }
            Op::Resize { size_bytes } => {
                alive()?;
                floor.owned(record)?;
                if *size_bytes < self.size_bytes {
                    return Err(Inert::Shrinks { size_bytes: self.size_bytes, asked_bytes: *size_bytes });
                }
                Ok(())
            }
            Op::Write { .. } | Op::WritePages { .. } => {
                alive()?;
                floor.owned(record)
            }
            Op::SwitchSnapshotMap { snapshot, generation, .. } => {
                floor.owned(record)?;
                match self.snapshots.get(snapshot) {
                    Some(found) if found.generation + 1 == *generation => Ok(()),
                    Some(_) => Err(Inert::Generation { snapshot: *snapshot }),
                    None => Err(Inert::NoSuchSnapshot { snapshot: *snapshot }),
                }
            }
            Op::RunCommitted { run } => {
                floor.owned(record)?;
                if self.ended_runs.contains(run) { Err(Inert::RunEnded { run: *run }) } else { Ok(()) }
            }
            Op::Relocate { .. } | Op::RunEnded { .. } | Op::Noop => floor.owned(record),
        }
    }

    fn check_grant(&self, mode: GrantMode, floor: &mut Floor) -> Result<(), Inert> {
        if self.last.is_none() || (self.dead && mode != GrantMode::Maintenance) {
            return Err(Inert::Dead);
        }
        // A maintenance grant gives way to any publish; a publish gives way to none.
        if let Some(Grant { node, mode: held, .. }) = &self.grant
            && (*held != GrantMode::Maintenance || mode == GrantMode::Maintenance)
        {
            return Err(Inert::Granted { node: node.clone() });
        }
        if let (GrantMode::ReadWrite, Some(reader)) = (mode, self.readers.first()) {
            return Err(Inert::Granted { node: reader.node.clone() });
        }
        floor.session = SessionId::NONE;
        Ok(())
    }

    /// Applies `record`, or leaves the state as it is and says why the record is inert.
    pub fn apply(&mut self, record: &Record) -> Result<(), Inert> {
        self.check(record)?;
        for op in &record.ops {
            self.apply_op(record, op);
        }
        self.last = record.id;
        self.buffer_complete = self.buffer_complete.max(record.buffer_complete);
        Ok(())
    }

    fn apply_op(&mut self, record: &Record, op: &Op) {
        match op {
            Op::Create { size_bytes } | Op::Resize { size_bytes } => self.size_bytes = *size_bytes,
            Op::Dead => self.dead = true,
            Op::Grant { node, mode } => {
                self.session = None;
                self.grant = None;
                match mode {
                    GrantMode::ReadOnly => self.readers.push(Reader { id: record.id, node: node.clone() }),
                    GrantMode::ReadWrite | GrantMode::Maintenance => {
                        self.buffer_complete = 0;
                        self.grant = Some(Grant { id: record.id, node: node.clone(), mode: *mode });
                    }
                }
            }
            Op::Revoke { grant } => {
                self.readers.retain(|reader| reader.id != *grant);
                if self.grant.as_ref().is_some_and(|held| held.id == *grant) {
                    self.grant = None;
                    self.session = None;
                }
            }
            Op::Open { grant, endpoint, .. } => {
                self.session = Some(Session { id: record.id, grant: *grant, endpoint: endpoint.clone() });
            }
            Op::Close => self.session = None,
            Op::Snapshot { name, meta } => {
                let snapshot = Snapshot {
                    name: name.clone(),
                    meta: meta.clone(),
                    time_ms: record.time_ms,
                    size_bytes: self.size_bytes,
                    deleted: false,
                    generation: 0,
                    map: None,
                };
                self.snapshots.insert(SnapshotId(record.number.0), snapshot);
            }
            Op::DeleteSnapshot { snapshot } => {
                if let Some(found) = self.snapshots.get_mut(snapshot) {
                    found.deleted = true;
                }
            }
            Op::Annotate { snapshot, meta } => {
                if let Some(found) = self.snapshots.get_mut(snapshot) {
                    found.meta.clone_from(meta);
                }
            }
            Op::ForgetSnapshot { snapshot } => {
                self.snapshots.remove(snapshot);
            }
            Op::SwitchSnapshotMap { snapshot, generation, map } => {
                if let Some(found) = self.snapshots.get_mut(snapshot) {
                    found.generation = *generation;
                    found.map = Some(*map);
                }
            }
            Op::RunCommitted { run } | Op::RunEnded { run } => {
                self.ended_runs.insert(*run);
            }
            // The map's business, not the control state's.
            Op::Maintain | Op::Write { .. } | Op::WritePages { .. } | Op::Relocate { .. } | Op::Noop => {}
        }
    }

    /// Whether record 1 says that the volume will never exist: its creation was given up.
    pub fn is_given_up(&self) -> bool {
        self.dead && self.size_bytes == 0
    }

    /// The snapshot of this name that is not deleted.
    pub fn snapshot_named(&self, name: &str) -> Option<(SnapshotId, &Snapshot)> {
        self.snapshots.iter().find(|(_, s)| !s.deleted && s.name == name).map(|(id, s)| (*id, s))
    }

    /// The snapshot, if it exists and is not deleted.
    pub fn live_snapshot(&self, snapshot: SnapshotId) -> Result<&Snapshot, Inert> {
        self.snapshots.get(&snapshot).filter(|s| !s.deleted).ok_or(Inert::NoSuchSnapshot { snapshot })
    }
}

impl Record {
    /// Whether the record is kept as long as the volume exists, also when it is inert: a writer that was paused for
    /// hours must still collide with the record that ended its session.
    pub fn is_kept(&self) -> bool {
        self.number == RecordNumber(1)
            || self.ops.iter().any(|op| match op {
                Op::Create { .. }
                | Op::Dead
                | Op::Grant { .. }
                | Op::Revoke { .. }
                | Op::Open { .. }
                | Op::Close
                | Op::Maintain => true,
                Op::Snapshot { .. }
                | Op::DeleteSnapshot { .. }
                | Op::ForgetSnapshot { .. }
                | Op::Annotate { .. }
                | Op::Resize { .. }
                | Op::Write { .. }
                | Op::WritePages { .. }
                | Op::Relocate { .. }
                | Op::SwitchSnapshotMap { .. }
                | Op::RunCommitted { .. }
                | Op::RunEnded { .. }
                | Op::Noop => false,
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::VolumeId;

    struct History {
        control: Control,
        number: u64,
    }

    impl History {
        fn created() -> Self {
            let mut history = Self { control: Control::default(), number: 0 };
            history.append(ObjectId::NONE, vec![Op::Create { size_bytes: 1 << 20 }]).unwrap();
            history
        }

        fn record(&self, session: SessionId, ops: Vec<Op>) -> Record {
            let number = self.number + 1;
            Record {
                volume: VolumeId::NONE,
                number: RecordNumber(number),
                id: ObjectId([number as u8; 16]),
                session,
                prev: self.control.last,
                time_ms: 0,
                buffer_complete: 0,
                ops,
            }
        }

        fn append(&mut self, session: SessionId, ops: Vec<Op>) -> Result<ObjectId, Inert> {
            let record = self.record(session, ops);
            self.append_record(record)
        }

        fn append_record(&mut self, record: Record) -> Result<ObjectId, Inert> {
            self.number += 1;
            self.control.apply(&record).map(|()| record.id)
        }

        fn grant(&mut self, node: &str) -> Result<ObjectId, Inert> {
            self.append(ObjectId::NONE, vec![Op::Grant { node: node.into(), mode: GrantMode::ReadWrite }])
        }

        fn open(&mut self, grant: ObjectId, resumes: SessionId) -> Result<SessionId, Inert> {
            let mut record =
                self.record(ObjectId::NONE, vec![Op::Open { grant, resumes, endpoint: String::new() }]);
            record.session = record.id;
            self.append_record(record)
        }

        fn write(&mut self, session: SessionId) -> Result<ObjectId, Inert> {
            self.append(session, vec![Op::Write { extents: vec![] }])
        }
    }

    #[test]
    fn a_writer_writes_until_its_grant_is_revoked() {
        let mut history = History::created();
        let grant = history.grant("a").unwrap();
        let session = history.open(grant, ObjectId::NONE).unwrap();
        history.write(session).unwrap();
        history.append(ObjectId::NONE, vec![Op::Revoke { grant }]).unwrap();
        assert_eq!(history.write(session), Err(Inert::SessionOver));
        assert_eq!(history.open(grant, ObjectId::NONE), Err(Inert::NotGranted));
    }

    #[test]
    fn a_second_node_is_not_granted_while_the_first_holds_the_volume() {
        let mut history = History::created();
        history.grant("a").unwrap();
        assert_eq!(history.grant("b"), Err(Inert::Granted { node: "a".into() }));
    }

    #[test]
    fn a_revoke_of_nothing_stands_in_the_way_of_a_late_grant() {
        let mut history = History::created();
        let late =
            history.record(ObjectId::NONE, vec![Op::Grant { node: "a".into(), mode: GrantMode::ReadWrite }]);
        history.append(ObjectId::NONE, vec![Op::Revoke { grant: ObjectId::NONE }]).unwrap();
        assert_eq!(history.append_record(late), Err(Inert::NotNext));
    }

    #[test]
    fn a_successor_names_the_session_it_resumes() {
        let mut history = History::created();
        let grant = history.grant("a").unwrap();
        let first = history.open(grant, ObjectId::NONE).unwrap();
        assert_eq!(history.open(grant, ObjectId::NONE), Err(Inert::SessionOpen));
        let second = history.open(grant, first).unwrap();
        assert_eq!(history.write(first), Err(Inert::SessionOver));
        history.write(second).unwrap();
    }

    #[test]
    fn maintenance_gives_way_to_a_publish_and_not_the_reverse() {
        let mut history = History::created();
        let maintain = |node: &str| vec![Op::Grant { node: node.into(), mode: GrantMode::Maintenance }];
        let grant = history.append(ObjectId::NONE, maintain("job")).unwrap();
        let session = history.open(grant, ObjectId::NONE).unwrap();
        history.grant("a").unwrap();
        assert_eq!(history.write(session), Err(Inert::SessionOver));
        let refused = history.append(ObjectId::NONE, maintain("job"));
        assert_eq!(refused, Err(Inert::Granted { node: "a".into() }));
    }

    #[test]
    fn readers_exclude_a_writer() {
        let mut history = History::created();
        let read = |node: &str| vec![Op::Grant { node: node.into(), mode: GrantMode::ReadOnly }];
        let first = history.append(ObjectId::NONE, read("a")).unwrap();
        let second = history.append(ObjectId::NONE, read("b")).unwrap();
        assert_eq!(history.grant("c"), Err(Inert::Granted { node: "a".into() }));
        history.append(ObjectId::NONE, vec![Op::Revoke { grant: first }]).unwrap();
        history.append(ObjectId::NONE, vec![Op::Revoke { grant: second }]).unwrap();
        history.grant("c").unwrap();
    }

    #[test]
    fn the_controller_acts_by_itself_only_while_no_session_is_open() {
        let mut history = History::created();
        let snapshot =
            |name: &str| vec![Op::Maintain, Op::Snapshot { name: name.into(), meta: String::new() }];
        history.append(ObjectId::NONE, snapshot("first")).unwrap();
        let grant = history.grant("a").unwrap();
        history.open(grant, ObjectId::NONE).unwrap();
        assert_eq!(history.append(ObjectId::NONE, snapshot("second")), Err(Inert::SessionOpen));
    }

    #[test]
    fn a_deleted_volume_takes_nothing_but_the_deletion_of_its_snapshots() {
        let mut history = History::created();
        let name = || Op::Snapshot { name: "s".into(), meta: String::new() };
        history.append(ObjectId::NONE, vec![Op::Maintain, name()]).unwrap();
        let snapshot = SnapshotId(2);
        history.append(ObjectId::NONE, vec![Op::Maintain, Op::Dead]).unwrap();
        assert_eq!(history.grant("a"), Err(Inert::Dead));
        assert_eq!(history.append(ObjectId::NONE, vec![Op::Maintain, name()]), Err(Inert::Dead));
        history.append(ObjectId::NONE, vec![Op::Maintain, Op::DeleteSnapshot { snapshot }]).unwrap();
        history.append(ObjectId::NONE, vec![Op::Maintain, Op::ForgetSnapshot { snapshot }]).unwrap();
        assert!(history.control.snapshots.is_empty());
    }

    #[test]
    fn a_creation_that_was_given_up_stays_given_up() {
        let mut history = History { control: Control::default(), number: 0 };
        history.append(ObjectId::NONE, vec![Op::Dead]).unwrap();
        let created = history.append(ObjectId::NONE, vec![Op::Create { size_bytes: 1 }]);
        assert_eq!(created, Err(Inert::Dead));
    }

    #[test]
    fn an_inert_record_changes_nothing() {
        let mut history = History::created();
        let before = history.control.clone();
        let ops = vec![Op::Maintain, Op::Resize { size_bytes: 1 << 21 }, Op::Resize { size_bytes: 1 }];
        assert!(matches!(history.append(ObjectId::NONE, ops), Err(Inert::Shrinks { .. })));
        assert_eq!(history.control, before);
    }
}
