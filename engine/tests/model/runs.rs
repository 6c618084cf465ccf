//! Archive runs: a point becomes visible whole or not at all, and names only segments that stay.
//!
//! Three Jobs may be under way at once, two of them of the same run. A Job lists the segments that its run has uploaded
//! already, takes over the archive's session, uploads what is missing of the difference from the newest point, and
//! commits. A sweeper takes over the session too, ends runs, and deletes what nothing names. A point may expire.
//!
//! Checked: a point has the contents of the snapshot that it is a copy of, and its segments exist.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_engine::codec::Codec;
use holdfast_engine::ids::{ObjectId, RecordNumber, SessionId, SnapshotId, VolumeId};
use holdfast_engine::log::{Control, GrantMode, Inert, Op, Record};
use holdfast_engine::map::{Extent, Location, SegmentKind, SegmentRef};

use crate::history::{History, Log, RecordRef, Replay, id, name};
use crate::search::{self, Model, holds};

/// A rule that can be left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// Segments and point become visible with one record.
    OneRecord,
    /// A run that has ended commits no more, and so adopts nothing.
    EndedRunsStay,
    /// A sweeper ends a run before it deletes the run's segments.
    EndBeforeDelete,
    /// The difference is taken from the newest point that the Job's own session finds.
    DiffInSession,
    /// The newest point is not removed: the head holds what it holds.
    NewestStays,
}

/// What a block of a point is read from; `None` is a hole, which reads as zero.
type Blocks = [Option<ObjectId>; 2];

/// The points: their names, and what their blocks hold.
const POINTS: [(&str, [u8; 2]); 3] = [("p1", [1, 1]), ("p2", [0, 2]), ("p3", [1, 3])];

/// The names of the Jobs.
const JOBS: [&str; 3] = ["a", "b", "c"];

/// Which points the Jobs are for. A run is named like its point.
type Scope = [usize; 3];
const SAME_RUN: Scope = [0, 0, 1];
const THREE_RUNS: Scope = [0, 1, 2];

/// Sessions of the sweeper at most.
const SWEEPS: u8 = 2;

fn segment(job: &str, point: usize, block: usize, value: u8) -> ObjectId {
    id(&format!("{}.{block}={value}.{job}", POINTS[point].0))
}

fn value(segment: Option<ObjectId>) -> u8 {
    segment.map_or(0, |segment| segment.0[5] - b'0')
}

fn block(segment: ObjectId) -> usize {
    usize::from(segment.0[3] - b'0')
}

fn run(segment: ObjectId) -> ObjectId {
    id(&name(segment)[..2])
}

fn extent(block: usize, segment: Option<ObjectId>) -> Extent {
    let location = segment.map(|id| Location {
        segment: SegmentRef { volume: VolumeId::NONE, birth: RecordNumber(0), id, kind: SegmentKind::Object },
        stored_offset: 0,
        stored_len: 0,
        codec: Codec::Raw,
        chunk_blocks: 1,
        chunk_offset: 0,
    });
    Extent { lba: block as u64, blocks: 1, location }
}

fn write(blocks: &[(usize, Option<ObjectId>)]) -> Op {
    Op::Write { extents: blocks.iter().map(|(block, segment)| extent(*block, *segment)).collect() }
}

/// The head of the archive and its points.
#[derive(Debug, Clone, Default)]
struct Archive {
    head: Blocks,
    points: BTreeMap<SnapshotId, Blocks>,
}

#[derive(Debug)]
struct Rules {
    without: Option<Rule>,
}

impl Replay for Rules {
    type Follows = Archive;

    fn apply(
        &self,
        control: &mut Control,
        archive: &mut Archive,
        (_, record): (RecordRef, &Record),
    ) -> Result<(), Inert> {
        let ended = control.ended_runs.clone();
        if self.without == Some(Rule::EndedRunsStay) {
            control.ended_runs.clear();
        }
        control.apply(record)?;
        control.ended_runs.extend(ended);
        for op in &record.ops {
            match op {
                Op::Write { extents } => {
                    for extent in extents {
                        archive.head[extent.lba as usize] =
                            extent.location.map(|location| location.segment.id);
                    }
                }
                Op::Snapshot { .. } => {
                    archive.points.insert(SnapshotId(record.number.0), archive.head);
                }
                Op::ForgetSnapshot { snapshot } => {
                    archive.points.remove(snapshot);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Where a Job stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Job {
    Idle,
    /// It has listed its run's segments, and seen the newest point.
    Listed {
        adopted: BTreeSet<ObjectId>,
        newest: Option<[u8; 2]>,
    },
    /// It has a session. It uploads for the blocks that differ.
    Copies {
        session: SessionId,
        differs: Vec<(usize, u8)>,
        has: BTreeMap<usize, ObjectId>,
    },
    /// Only without [`Rule::OneRecord`]: the first block is visible.
    Half {
        session: SessionId,
        rest: Vec<(usize, Option<ObjectId>)>,
    },
    Over,
}

/// Where the sweeper stands.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Sweeper {
    Idle,
    Opened {
        session: SessionId,
    },
    /// It deletes these.
    Deletes(BTreeSet<ObjectId>),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    log: Log,
    segments: BTreeSet<ObjectId>,
    jobs: [Job; 3],
    sweeper: Sweeper,
    sweeps: u8,
    expired: bool,
}

#[derive(Debug)]
struct Runs {
    scope: Scope,
    history: History<Rules>,
}

impl Runs {
    fn new(scope: Scope, without: Option<Rule>) -> Self {
        Self { scope, history: History::new(Rules { without }) }
    }

    fn keeps(&self, rule: Rule) -> bool {
        self.history.rules.without != Some(rule)
    }

    /// What the newest point holds.
    fn newest(&self, log: &Log) -> Option<[u8; 2]> {
        let points = &self.history.follows(log.state).points;
        points.last_key_value().map(|(_, blocks)| blocks.map(value))
    }

    /// Takes the session over: nobody who held it before appends any more.
    fn open(&mut self, log: &mut Log, actor: &str) -> SessionId {
        let history = &mut self.history;
        if let Some(grant) = history.control(log.state).grant.as_ref().map(|grant| grant.id) {
            log.append(history, "revoke", None, vec![Op::Revoke { grant }]);
        }
        let mode = GrantMode::Maintenance;
        log.append(history, "grant", None, vec![Op::Grant { node: actor.into(), mode }]);
        let grant = history.control(log.state).last;
        let open = Op::Open { grant, resumes: SessionId::NONE, endpoint: String::new() };
        log.append(history, actor, None, vec![open]);
        history.control(log.state).last
    }

    fn job(&mut self, state: &State, place: usize, out: &mut Vec<(&'static str, State)>) {
        let (actor, point) = (JOBS[place], self.scope[place]);
        let (point_name, contents) = POINTS[point];
        let mut next = state.clone();
        match &state.jobs[place] {
            Job::Idle => {
                let mine = |segment: &&ObjectId| run(**segment) == id(point_name);
                let adopted = state.segments.iter().filter(mine).copied().collect();
                next.jobs[place] = Job::Listed { adopted, newest: self.newest(&state.log) };
                out.push(("a Job lists its run's segments", next));
            }
            Job::Listed { adopted, newest } => {
                let session = self.open(&mut next.log, actor);
                let base = if self.keeps(Rule::DiffInSession) { self.newest(&next.log) } else { *newest };
                let exists = self.history.control(next.log.state).snapshot_named(point_name).is_some();
                // Without a base everything is copied, over whatever the head has.
                let changed = |block: &usize| base.is_none_or(|base| base[*block] != contents[*block]);
                let differs: Vec<(usize, u8)> =
                    (0..2).filter(changed).map(|block| (block, contents[block])).collect();
                let fits = |s: &&ObjectId| differs.contains(&(block(**s), value(Some(**s))));
                let has = adopted.iter().filter(fits).map(|segment| (block(*segment), *segment)).collect();
                next.jobs[place] = if exists { Job::Over } else { Job::Copies { session, differs, has } };
                out.push(("a Job takes over the session", next));
            }
            Job::Copies { session, differs, has } => {
                let missing = differs.iter().find(|(block, value)| *value > 0 && !has.contains_key(block));
                if let Some((block, value)) = missing {
                    let uploaded = segment(actor, point, *block, *value);
                    next.segments.insert(uploaded);
                    let mut has = has.clone();
                    has.insert(*block, uploaded);
                    next.jobs[place] = Job::Copies { session: *session, differs: differs.clone(), has };
                    out.push(("a Job uploads a segment", next));
                    return;
                }
                let blocks: Vec<(usize, Option<ObjectId>)> =
                    differs.iter().map(|(block, _)| (*block, has.get(block).copied())).collect();
                if !self.keeps(Rule::OneRecord) && blocks.len() > 1 {
                    let first = write(&blocks[..1]);
                    let counts = next.log.append(&mut self.history, actor, Some(*session), vec![first]);
                    let half = Job::Half { session: *session, rest: blocks[1..].to_vec() };
                    next.jobs[place] = if counts { half } else { Job::Over };
                    out.push(("a Job commits its first segment", next));
                } else {
                    out.push(("a Job commits", self.commit(next, place, *session, &blocks)));
                }
            }
            Job::Half { session, rest } => {
                out.push(("a Job commits the rest", self.commit(next, place, *session, rest)));
            }
            Job::Over => {}
        }
    }

    fn commit(
        &mut self,
        mut next: State,
        place: usize,
        session: SessionId,
        blocks: &[(usize, Option<ObjectId>)],
    ) -> State {
        let (actor, point) = (JOBS[place], POINTS[self.scope[place]].0);
        let snapshot = Op::Snapshot { name: point.into(), meta: String::new() };
        let ops = vec![write(blocks), Op::RunCommitted { run: id(point) }, snapshot];
        next.log.append(&mut self.history, actor, Some(session), ops);
        next.jobs[place] = Job::Over;
        next
    }

    /// What neither the head nor a point names.
    fn garbage(&self, state: &State) -> BTreeSet<ObjectId> {
        let Archive { head, points } = self.history.follows(state.log.state);
        let named: BTreeSet<ObjectId> = points.values().chain([head]).flatten().flatten().copied().collect();
        state.segments.difference(&named).copied().collect()
    }

    fn sweep(&mut self, state: &State, out: &mut Vec<(&'static str, State)>) {
        let mut next = state.clone();
        match &state.sweeper {
            Sweeper::Idle if state.sweeps < SWEEPS => {
                let session = self.open(&mut next.log, "sweeper");
                next.sweeper = Sweeper::Opened { session };
                next.sweeps += 1;
                out.push(("the sweeper takes over the session", next));
            }
            Sweeper::Idle => {}
            Sweeper::Opened { session } => {
                let control = self.history.control(state.log.state);
                next.sweeper = Sweeper::Idle;
                if control.session.as_ref().is_some_and(|current| current.id == *session) {
                    let mut garbage = self.garbage(state);
                    let ended = &control.ended_runs;
                    let unended: BTreeSet<ObjectId> =
                        garbage.iter().map(|s| run(*s)).filter(|run| !ended.contains(run)).collect();
                    if self.keeps(Rule::EndBeforeDelete) && !unended.is_empty() {
                        // Their segments wait for a later sweep.
                        garbage.retain(|segment| !unended.contains(&run(*segment)));
                        let ops = unended.iter().map(|run| Op::RunEnded { run: *run }).collect();
                        next.log.append(&mut self.history, "end", Some(*session), ops);
                    }
                    next.sweeper = Sweeper::Deletes(garbage);
                }
                out.push(("the sweeper looks, and ends runs", next));
            }
            Sweeper::Deletes(garbage) => {
                let mut left = garbage.clone();
                if let Some(segment) = left.pop_first() {
                    next.segments.remove(&segment);
                    next.sweeper = Sweeper::Deletes(left);
                    out.push(("the sweeper deletes a segment", next));
                } else {
                    next.sweeper = Sweeper::Idle;
                    out.push(("the sweeper is done", next));
                }
            }
        }
    }

    /// Deletes a point, which nothing pins.
    fn expire(&mut self, state: &State, snapshot: SnapshotId) -> Option<State> {
        let control = self.history.control(state.log.state);
        let is_newest = control.snapshots.last_key_value().is_some_and(|(newest, _)| *newest == snapshot);
        if state.expired || (is_newest && self.keeps(Rule::NewestStays)) {
            return None;
        }
        let grant = control.grant.as_ref().map(|grant| grant.id);
        let mut next = state.clone();
        next.expired = true;
        if let Some(grant) = grant {
            next.log.append(&mut self.history, "revoke", None, vec![Op::Revoke { grant }]);
        }
        let ops = vec![Op::Maintain, Op::DeleteSnapshot { snapshot }];
        next.log.append(&mut self.history, "expire", None, ops);
        let ops = vec![Op::Maintain, Op::ForgetSnapshot { snapshot }];
        next.log.append(&mut self.history, "forget", None, ops).then_some(next)
    }
}

impl Model for Runs {
    type State = State;

    fn starts(&mut self) -> Vec<State> {
        vec![State {
            log: Log::new(&mut self.history, Control::default(), Archive::default()),
            segments: BTreeSet::new(),
            jobs: [const { Job::Idle }; 3],
            sweeper: Sweeper::Idle,
            sweeps: 0,
            expired: false,
        }]
    }

    fn steps(&mut self, state: &State, out: &mut Vec<(&'static str, State)>) {
        for place in 0..JOBS.len() {
            self.job(state, place, out);
        }
        self.sweep(state, out);
        let points: Vec<SnapshotId> = self.history.follows(state.log.state).points.keys().copied().collect();
        for point in points {
            out.extend(self.expire(state, point).map(|next| ("a point expires", next)));
        }
    }

    fn violation(&mut self, state: &State) -> Option<String> {
        let control = self.history.control(state.log.state);
        for (snapshot, blocks) in &self.history.follows(state.log.state).points {
            let point = &control.snapshots[snapshot].name;
            let contents = POINTS.iter().find(|(name, _)| name == point).map(|(_, contents)| *contents);
            if contents != Some(blocks.map(value)) {
                return Some(format!("{point} reads {:?}, which should be {contents:?}", blocks.map(value)));
            }
            let gone = blocks.iter().flatten().find(|segment| !state.segments.contains(*segment));
            if let Some(segment) = gone {
                return Some(format!("{point} names {}, which is gone", name(*segment)));
            }
        }
        None
    }

    /// The last point is there, an older one has expired, and sweeps have left nothing but what is needed.
    fn is_complete(&mut self, state: &State) -> bool {
        let newest = self.newest(&state.log);
        newest == Some(POINTS[self.scope[2]].1)
            && state.expired
            && state.sweeps == SWEEPS
            && self.garbage(state).is_empty()
    }

    fn show(&self, state: &State) -> String {
        let State { log, segments, jobs, sweeper, .. } = state;
        let segments: Vec<String> = segments.iter().map(|segment| name(*segment)).collect();
        let jobs = jobs.each_ref().map(|job| match job {
            Job::Idle => "idle",
            Job::Listed { .. } => "listed",
            Job::Copies { .. } => "copies",
            Job::Half { .. } => "half",
            Job::Over => "over",
        });
        let sweeper = match sweeper {
            Sweeper::Idle => "idle",
            Sweeper::Opened { .. } => "opened",
            Sweeper::Deletes(_) => "deletes",
        };
        format!("jobs {jobs:?} | sweeper {sweeper} | segments {segments:?} | log {}", log.show(&self.history))
    }
}

#[track_caller]
fn violated(scope: Scope, without: Rule) {
    search::violated(Runs::new(scope, Some(without)), &[without]);
}

#[test]
fn the_rules_hold_for_two_jobs_of_one_run() {
    holds(Runs::new(SAME_RUN, None));
}

#[test]
fn the_rules_hold_for_three_runs() {
    holds(Runs::new(THREE_RUNS, None));
}

#[test]
fn segments_and_point_become_visible_in_one_record() {
    violated(THREE_RUNS, Rule::OneRecord);
}

#[test]
fn a_run_that_has_ended_commits_no_more() {
    violated(SAME_RUN, Rule::EndedRunsStay);
}

#[test]
fn a_sweeper_ends_a_run_before_it_deletes() {
    violated(SAME_RUN, Rule::EndBeforeDelete);
}

#[test]
fn the_difference_is_taken_inside_the_session() {
    violated(THREE_RUNS, Rule::DiffInSession);
}

#[test]
fn the_newest_point_stays() {
    violated(THREE_RUNS, Rule::NewestStays);
}
