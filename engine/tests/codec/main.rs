//! The format, from outside: what is encoded decodes to the same; what is damaged or out of place is refused.

mod allocations;
mod damage;
mod exchanges;
mod forgery;
mod fuzz;
#[path = "../fuzzing/mutator.rs"]
mod mutator;
mod round_trips;
mod samples;
mod values;
mod vectors;
