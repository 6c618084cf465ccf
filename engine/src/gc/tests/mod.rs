//! The collector against a store in memory whose clock the tests set.

mod clones;
mod differences;
mod ends;
mod generations;
mod races;
mod scene;
mod source;
mod space;
mod sweeps;
