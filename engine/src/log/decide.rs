//! Appending by somebody who holds no session: replay, decide on that state, put, and look again.

use tokio::time::Instant;

use super::{Control, ControlOnly, Inert, Log, LogError, Op, Put, Record};
use crate::codec;
use crate::ids::{ObjectId, RecordNumber, SessionId};

/// What to do about the state that a replay has shown.
#[derive(Debug)]
pub enum Decision<T> {
    /// Nothing is to be written: the answer.
    Answer(T),
    /// These ops are to be appended.
    Append(Vec<Op>),
}

/// A decision carried out.
#[derive(Debug)]
pub enum Decided<T> {
    /// Nothing was written.
    Answer(T),
    /// The record lies at this number under this id, and this is the state after it.
    Appended {
        /// Where.
        number: RecordNumber,
        /// Its id.
        id: ObjectId,
        /// The state.
        control: Box<Control>,
    },
}

impl Log {
    /// Replays the log and does what `decide` says about its state; again, whenever somebody else was faster.
    ///
    /// An append counts only if no root newer than the replay's base has appeared after it (the number may have been
    /// one that the collector had emptied); if one has, the replay begins again and `decide` sees what came of it. So
    /// `decide` must recognise its own work.
    ///
    /// No put starts after `deadline`.
    pub async fn decide<T>(
        &self,
        deadline: Instant,
        mut decide: impl FnMut(&Control) -> Result<Decision<T>, LogError>,
    ) -> Result<Decided<T>, LogError> {
        loop {
            let state = self.replay(&mut ControlOnly, deadline).await?;
            let ops = match decide(&state.control)? {
                Decision::Answer(answer) => return Ok(Decided::Answer(answer)),
                Decision::Append(ops) => ops,
            };
            let id = ObjectId::random(&*self.env.entropy);
            let record = Record {
                volume: self.volume,
                number: state.next,
                id,
                session: SessionId::NONE,
                prev: state.control.last,
                time_ms: self.env.clock.now_ms(),
                buffer_complete: 0,
                ops,
            };
            let mut control = state.control;
            control
                .apply(&record)
                .map_err(|reason: Inert| LogError::Illegal { volume: self.volume, reason })?;
            if Instant::now() >= deadline {
                return Err(LogError::Deadline { volume: self.volume });
            }
            let body = codec::encode_record(record, None, self.key.as_ref())?.bytes;
            match self.put(state.next, id, body, deadline).await {
                Ok(Put::Done) => {}
                Ok(Put::Taken(_)) | Err(LogError::Overtaken { .. }) => continue,
                Err(error) => return Err(error),
            }
            if self.newest_root(deadline).await?.unwrap_or_default() <= state.base {
                return Ok(Decided::Appended { number: state.next, id, control: Box::new(control) });
            }
        }
    }
}
