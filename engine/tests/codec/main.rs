//! The format, from outside: what is encoded decodes to the same; what is damaged or out of place is refused.

mod round_trips;
mod values;
