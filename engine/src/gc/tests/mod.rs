//! The collector against a store in memory whose clock the tests set.

mod differences;
mod ends;
mod generations;
mod races;
mod scene;
mod space;
mod sweeps;
