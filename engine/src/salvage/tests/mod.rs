//! Damage of every kind, over a store in memory.

mod histories;
mod rebuilds;
mod repairs;
mod scene;
mod scrubs;
