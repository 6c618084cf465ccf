//! Exhaustive checks, in small scope, of the protocols that keep data safe, each rule shown necessary by leaving it out.
//!
//! A model is a few actors that take atomic steps in any order and may pause for ever between two of them. A search
//! goes through all states that they can reach. With every rule in force no state may violate what is promised; with a
//! rule left out some state must. What takes effect in a log is decided by the engine's own [`Control::apply`].
//!
//! The models are composed by subject. [`log`] shows that an append takes effect on the state that it was decided on,
//! or not at all, whatever stores and processes do; the others build on that, and take a decision and its append for
//! one step.
//!
//! [`Control::apply`]: holdfast_engine::log::Control::apply

mod buffers;
mod checkpoints;
mod clones;
mod generations;
mod history;
mod log;
mod runs;
mod search;
