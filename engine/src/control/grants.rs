//! Publishing and unpublishing: who may open a volume.
//!
//! # Guarantees
//! - Detaching fences: after [`unpublish`] has answered, no record of the node's session takes effect any more, whether
//!   the node knows or not.
//! - A publish that is repeated writes nothing and returns the same grant.
//! - After [`unpublish`] has answered, no Grant for the node takes effect whose put was under way before.
//! - An unpublish revokes only the grant that its first replay saw, so a late repetition cannot take away a later one.

use tokio::time::Instant;

use crate::ids::{GrantId, ObjectId};
use crate::log::{Control, Decided, Decision, Grant, GrantMode, Inert, Log, LogError, Op};
use crate::pool::layout;

/// Why a volume could not be published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Another node holds it.
    #[error("the volume is in use on node {node}; it must be detached there first")]
    HeldBy {
        /// The holder.
        node: String,
    },
    /// It does not exist (any more).
    #[error("the volume does not exist")]
    NoSuchVolume,
    /// Its log failed.
    #[error(transparent)]
    Log(#[from] LogError),
}

/// The grant that `node` holds for `mode`, if any.
fn held(control: &Control, node: &str, mode: GrantMode) -> Option<GrantId> {
    match mode {
        GrantMode::ReadOnly => {
            control.readers.iter().find(|reader| reader.node == node).map(|reader| reader.id)
        }
        GrantMode::ReadWrite | GrantMode::Maintenance => control
            .grant
            .as_ref()
            .filter(|grant| grant.node == node && grant.mode == mode)
            .map(|grant| grant.id),
    }
}

/// Grants the volume to `node`. Repeated for the same node and mode it writes nothing.
pub async fn publish(
    log: &Log,
    node: &str,
    mode: GrantMode,
    deadline: Instant,
) -> Result<GrantId, PublishError> {
    let mut refused = None;
    let decided = log
        .decide(deadline, |control| {
            refused = None;
            // A deleted volume is granted only to who collects what is left of it.
            if control.last.is_none() || control.dead && mode != GrantMode::Maintenance {
                refused = Some(PublishError::NoSuchVolume);
                return Ok(Decision::Answer(ObjectId::NONE));
            }
            if let Some(grant) = held(control, node, mode) {
                return Ok(Decision::Answer(grant));
            }
            let in_the_way = match (&control.grant, mode) {
                (Some(Grant { node, mode: GrantMode::ReadWrite, .. }), _) => Some(node),
                (Some(Grant { node, .. }), GrantMode::Maintenance) => Some(node),
                (Some(_) | None, GrantMode::ReadWrite) => control.readers.first().map(|reader| &reader.node),
                (Some(_) | None, GrantMode::ReadOnly) | (None, GrantMode::Maintenance) => None,
            };
            if let Some(node) = in_the_way {
                refused = Some(PublishError::HeldBy { node: node.clone() });
                return Ok(Decision::Answer(ObjectId::NONE));
            }
            Ok(Decision::Append(vec![Op::Grant { node: node.into(), mode }]))
        })
        .await?;
    match (decided, refused) {
        (_, Some(refused)) => Err(refused),
        (Decided::Answer(grant) | Decided::Appended { id: grant, .. }, None) => Ok(grant),
    }
}

/// Takes the volume back from `node`. If another node may write to it nothing is written; else a Revoke is appended,
/// even with nothing to revoke: a Grant whose put timed out may still be on its way, and must find its place taken.
/// Maintenance gives way to such a Grant, and readers stand next to one to read, so neither of them holds it off.
pub async fn unpublish(log: &Log, node: &str, deadline: Instant) -> Result<(), LogError> {
    revoke_all(log, deadline, |control| {
        let of_node = |holder: &str| holder == node;
        let writer = control.grant.iter().filter(|grant| of_node(&grant.node)).map(|grant| grant.id);
        let readers = control.readers.iter().filter(|reader| of_node(&reader.node)).map(|reader| reader.id);
        let grants: Vec<GrantId> = writer.chain(readers).collect();
        let written = control.grant.as_ref().is_some_and(|grant| grant.mode == GrantMode::ReadWrite);
        if grants.is_empty() && written { None } else { Some(grants) }
    })
    .await
}

/// Takes the volume back from whoever holds it: the manual way out, for an administrator.
pub async fn release(log: &Log, deadline: Instant) -> Result<(), LogError> {
    revoke_all(log, deadline, |control| {
        let writer = control.grant.iter().map(|grant| grant.id);
        Some(writer.chain(control.readers.iter().map(|reader| reader.id)).collect())
    })
    .await
}

/// Ends `grant` if it is still in force.
pub async fn revoke(log: &Log, grant: GrantId, deadline: Instant) -> Result<(), LogError> {
    revoke_all(log, deadline, |control| {
        let held = control.grant.as_ref().is_some_and(|found| found.id == grant)
            || control.readers.iter().any(|reader| reader.id == grant);
        held.then(|| vec![grant])
    })
    .await
}

/// Revokes what `choose` names on the state that the *first* replay shows; `None` writes nothing.
async fn revoke_all(
    log: &Log,
    deadline: Instant,
    choose: impl Fn(&Control) -> Option<Vec<GrantId>>,
) -> Result<(), LogError> {
    let first = log.replay(&mut crate::log::ControlOnly, deadline).await?.control;
    if first.last.is_none() {
        return Ok(());
    }
    let Some(grants) = choose(&first) else { return Ok(()) };
    if let Some(session) = &first.session
        && grants.contains(&session.grant)
    {
        put_fence(log, session.grant, deadline).await?;
    }
    log.decide(deadline, |control| {
        let in_force = |grant: &GrantId| {
            control.grant.as_ref().is_some_and(|found| found.id == *grant)
                || control.readers.iter().any(|reader| reader.id == *grant)
        };
        let ops: Vec<Op> = match grants.as_slice() {
            // The chain has moved on, by our own Revoke or by another record: a Grant that was on its way before is
            // inert now, unless it was what moved the chain.
            [] if control.last != first.last => match choose(control) {
                Some(late) if !late.is_empty() => return Err(LogError::Raced { volume: log.volume }),
                Some(_) | None => Vec::new(),
            },
            [] => vec![Op::Revoke { grant: ObjectId::NONE }],
            some => some.iter().copied().filter(in_force).map(|grant| Op::Revoke { grant }).collect(),
        };
        Ok(if ops.is_empty() { Decision::Answer(()) } else { Decision::Append(ops) })
    })
    .await
    .map(|_| ())
}

/// Asks a busy owner to stop appending, so that the Revoke finds a place.
async fn put_fence(log: &Log, grant: GrantId, deadline: Instant) -> Result<(), LogError> {
    let key = layout::fence(log.volume, grant);
    let body = bytes::Bytes::from_static(b"{}");
    Ok(log.put_own(&key, &body, deadline).await?)
}

/// The state of a volume, from a replay.
pub async fn describe(log: &Log, deadline: Instant) -> Result<Control, LogError> {
    Ok(log.replay(&mut crate::log::ControlOnly, deadline).await?.control)
}

/// Takes back the maintenance grant that `control` shows; false if it shows none. Maintenance gives way to whatever is
/// asked for: its owner can begin anew, and one that has died would be in the way until the volume is published.
pub(super) async fn end_maintenance(
    log: &Log,
    control: &Control,
    deadline: Instant,
) -> Result<bool, LogError> {
    match &control.grant {
        Some(grant) if grant.mode == GrantMode::Maintenance => {
            revoke(log, grant.id, deadline).await?;
            Ok(true)
        }
        Some(_) | None => Ok(false),
    }
}

/// Grows a volume that no node has open.
pub async fn resize_detached(log: &Log, size_bytes: u64, deadline: Instant) -> Result<(), LogError> {
    let control = describe(log, deadline).await?;
    if control.size_bytes >= size_bytes {
        return Ok(());
    }
    end_maintenance(log, &control, deadline).await?;
    log.decide(deadline, |control| {
        if control.size_bytes >= size_bytes {
            return Ok(Decision::Answer(()));
        }
        refuse_open(log, control)?;
        Ok(Decision::Append(vec![Op::Maintain, Op::Resize { size_bytes }]))
    })
    .await
    .map(|_| ())
}

/// Fails while a session is open: then only the owner may act.
pub(super) fn refuse_open(log: &Log, control: &Control) -> Result<(), LogError> {
    match &control.session {
        Some(_) => Err(LogError::Illegal { volume: log.volume, reason: Inert::SessionOpen }),
        None => Ok(()),
    }
}
