//! What a volume says of itself, as far as that can be read.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::object::PATIENCE;
use super::{Damage, Place, SalvageError, Scope};
use crate::ids::{RecordNumber, SnapshotId};
use crate::log::{Control, Log, LogError};
use crate::map::{MapView, PageSource, Root};
use crate::pool::layout;
use crate::snapshot;
use crate::store::StoreError;
use crate::volume::MapSink;

/// How long a whole replay may take.
pub(super) const REPLAY: Duration = Duration::from_secs(3600);

/// What a volume says of itself.
#[derive(Debug)]
pub(super) struct State {
    /// The head, then the snapshots, newest first: those whose maps begin to be readable.
    pub views: Vec<(Place, MapView)>,
    /// The size of the first of them, or of the volume.
    pub size_bytes: u64,
    /// Why the volume cannot be opened. The head is then what the newest root that can be read says, if one can.
    pub unopenable: Option<String>,
    /// The record that is missing between others, and snapshots whose maps cannot be read at all.
    pub damage: Vec<Damage>,
    /// Whether anything is known of what the volume should hold.
    pub known: bool,
}

/// Whether the log's objects are damaged; else asking again may help.
pub(super) fn is_damage(error: &LogError) -> bool {
    match error {
        LogError::Codec(_) | LogError::Store(StoreError::NotFound { .. }) => true,
        LogError::Map(error) => error.is_damage(),
        LogError::Store(_)
        | LogError::Illegal { .. }
        | LogError::Overtaken { .. }
        | LogError::Raced { .. }
        | LogError::Deadline { .. } => false,
    }
}

/// The numbers of the records that are there, in order.
pub(super) async fn records(log: &Log) -> Result<Vec<RecordNumber>, LogError> {
    let listed = log.list(&layout::records(log.volume), Instant::now() + REPLAY).await?;
    Ok(listed.iter().filter_map(|listed| layout::number_in(&listed.key)).collect())
}

/// The roots that can be read, newest first; of the others, what is wrong.
pub(super) async fn roots(log: &Log) -> Result<(Vec<Root>, Vec<Damage>), LogError> {
    let (mut readable, mut damaged) = (Vec::new(), Vec::new());
    for (number, _) in log.roots(Instant::now() + PATIENCE).await?.into_iter().rev() {
        match log.root(number, Instant::now() + PATIENCE).await {
            Ok(root) => readable.extend(root),
            Err(LogError::Codec(error)) => {
                let key = layout::root(log.volume, number);
                damaged.push(Damage::undecodable(key, log.volume, &error));
            }
            Err(error) => return Err(error),
        }
    }
    Ok((readable, damaged))
}

impl State {
    /// Reads the state of the volume of `log`; `records` were listed before.
    pub async fn read(
        log: &Log,
        pages: &Arc<dyn PageSource>,
        scope: Scope,
        records: &[RecordNumber],
    ) -> Result<Self, SalvageError> {
        let mut sink = MapSink::new(Arc::clone(pages));
        let mut damage = Vec::new();
        let (control, head, unopenable) = match log.replay(&mut sink, Instant::now() + REPLAY).await {
            Ok(replayed) => {
                // A number that was listed before the replay, and that the replay did not come to, lies behind a gap.
                let behind = records.last().is_some_and(|last| *last >= replayed.next);
                let unopenable = if behind {
                    damage.push(Damage::missing(layout::record(log.volume, replayed.next), log.volume));
                    Some(format!("record {} is not there, although later ones are", replayed.next))
                } else {
                    let nothing = "there is neither a record nor a root that says what it holds";
                    replayed.control.last.is_none().then(|| nothing.into())
                };
                (Some(replayed.control), Some(sink.map.freeze()), unopenable)
            }
            Err(error) if is_damage(&error) => {
                let root = roots(log).await?.0.into_iter().next();
                let view = root.as_ref().map(|root| MapView::from_stored(Arc::clone(pages), &root.map));
                sink.snapshots.clear();
                (root.map(|root| root.control), view, Some(error.to_string()))
            }
            Err(error) => return Err(error.into()),
        };
        let known = control.as_ref().is_some_and(|control| !control.last.is_none());
        let control = control.unwrap_or_default();
        let mut state = Self { views: Vec::new(), size_bytes: control.size_bytes, unopenable, damage, known };
        if let Scope::Snapshot(snapshot) = scope {
            let found = control.snapshots.get(&snapshot);
            let missing = SalvageError::NoSuchSnapshot { volume: log.volume, snapshot };
            state.size_bytes = found.ok_or(missing)?.size_bytes;
        } else if !control.dead {
            state.views.extend(head.map(|head| (Place::Head, head)));
        }
        for snapshot in control.snapshots.keys().rev() {
            if matches!(scope, Scope::Volume) || matches!(scope, Scope::Snapshot(only) if only == *snapshot) {
                state.read_snapshot(log, pages, &control, *snapshot, &sink).await?;
            }
        }
        Ok(state)
    }

    async fn read_snapshot(
        &mut self,
        log: &Log,
        pages: &Arc<dyn PageSource>,
        control: &Control,
        id: SnapshotId,
        sink: &MapSink,
    ) -> Result<(), SalvageError> {
        let Some(snapshot) = control.snapshots.get(&id) else { return Ok(()) };
        let place = Place::Snapshot { id, name: snapshot.name.clone() };
        let Some(map) = snapshot.map else {
            // Not written yet: the replay has it, or the damage before it hides it.
            self.views.extend(sink.snapshots.get(&id).map(|view| (place, view.clone())));
            return Ok(());
        };
        let key = layout::map(log.volume, map);
        let mut damage = match snapshot::read_map(log, map, Instant::now() + PATIENCE).await {
            Ok(map) => {
                self.views.push((place, MapView::from_stored(Arc::clone(pages), &map.map)));
                return Ok(());
            }
            Err(LogError::Store(StoreError::NotFound { .. })) => Damage::missing(key, log.volume),
            Err(LogError::Codec(error)) => Damage::undecodable(key, log.volume, &error),
            Err(error) => return Err(error.into()),
        };
        damage.affect(&place, 0, snapshot.size_bytes);
        self.damage.push(damage);
        Ok(())
    }
}
