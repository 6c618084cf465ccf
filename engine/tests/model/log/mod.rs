//! Exhaustive check, in small scope, of the rules of the commit log, as the engine's own [`Control::apply`] decides them.
//!
//! Actors take atomic store calls that interleave freely; any of them may pause for ever between two calls.
//! - nodes A and B list the checkpoints, replay, open a session under a grant, commit writes (one record in flight),
//!   checkpoint, delete covered records, crash and come back as a new session; a put's reply may get lost, and the put
//!   may also land late;
//! - a controller replays, then appends Revoke and Grant to move the volume to the other node.
//!
//! Checked in every state: an acknowledged write is in what a fresh, undisturbed replay yields, and the session that
//! this replay calls current belongs to the node that holds the grant. With every rule in force this must hold; with a
//! rule left out there must be a violation. Only the log is modelled: no segments, pins, relocation or buffers.

mod actors;
mod scene;
mod state;

use crate::search::{self, holds};
use state::{Rule, Scope, World};

const SCOPE: Scope = Scope { highest: 6, writes: 2, moves: 1, opens: 1, late: 1, same_node: false };

#[track_caller]
fn violated(scope: Scope, without: &[Rule]) {
    search::violated(World::new(scope, without), without);
}

#[test]
fn the_rules_hold() {
    assert_eq!(holds(World::new(SCOPE, &[])), 146_695, "the model explores another space than it did");
}

#[test]
fn records_that_end_sessions_must_be_kept() {
    violated(SCOPE, &[Rule::KeepSessionRecords]);
}

#[test]
fn an_open_needs_the_grant() {
    violated(SCOPE, &[Rule::Grant]);
}

#[test]
fn a_retry_at_the_same_number_sends_the_same_bytes() {
    violated(Scope { highest: 5, ..SCOPE }, &[Rule::SameBytes]);
}

#[test]
fn records_name_their_predecessor_and_a_newer_checkpoint_is_replayed() {
    violated(SCOPE, &[Rule::Chain, Rule::ReplayAgain]);
}

#[test]
fn a_newcomer_lists_the_checkpoints_again_after_its_append() {
    violated(Scope { same_node: true, moves: 0, ..SCOPE }, &[Rule::Relist]);
}
