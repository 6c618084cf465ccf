//! Writing what is in memory only.

use std::sync::Arc;

use super::run::{RunWriter, run_of};
use super::{Layer, MapError, MapView, Memtable, PageRef, RunRef, StoredMap};

/// Layers of some views that were in memory, written as runs. Each layer is written once, however many of the views
/// (the head, the snapshots taken since the last checkpoint) have it.
///
/// The cost follows what changed since the last checkpoint, never the size of the map.
///
/// # Crash behaviour
/// Until a root names the runs they are garbage of this session.
#[derive(Debug, Default)]
pub struct Checkpoint {
    memtables: Vec<(Arc<Memtable>, Arc<RunRef>)>,
    /// Runs that were linked with more pages than a root should list.
    linked: Vec<(Arc<RunRef>, Arc<RunRef>)>,
    pages: usize,
}

impl Checkpoint {
    /// Writes the layers of `views` that need it.
    pub async fn write(views: &[&MapView]) -> Result<Self, MapError> {
        let mut checkpoint = Self::default();
        for view in views {
            for layer in view.layers().iter().filter(|layer| needs_writing(view, layer)) {
                if checkpoint.run(view, layer).is_none() {
                    checkpoint.write_layer(view, layer).await?;
                }
            }
        }
        Ok(checkpoint)
    }

    /// The map of `view` as stored; none if it has a layer that this checkpoint did not write.
    pub fn stored(&self, view: &MapView) -> Option<StoredMap> {
        let runs = view.layers().iter().map(|layer| self.run(view, layer).map(|run| (**run).clone()));
        Some(StoredMap { runs: runs.collect::<Option<_>>()?, origins: view.origins().to_vec() })
    }

    /// How many pages were written: compaction keeps pace with them ([`super::Compactor::budget`]).
    pub fn pages(&self) -> usize {
        self.pages
    }

    async fn write_layer(&mut self, view: &MapView, layer: &Layer) -> Result<(), MapError> {
        match layer {
            Layer::Memory(memtable) => {
                let mut writer = RunWriter::new(view.source().clone());
                for extent in memtable.iter() {
                    writer.push(extent).await?;
                }
                let pages = writer.finish().await?;
                self.pages += pages.len();
                let run = stored_run(view, pages).await?;
                self.memtables.push((memtable.clone(), run));
            }
            Layer::Run(run) => {
                if let RunRef::Pages(pages) = &**run {
                    self.pages += pages.len();
                    let indexed = stored_run(view, pages.clone()).await?;
                    self.linked.push((run.clone(), indexed));
                }
            }
        }
        Ok(())
    }

    fn run<'a>(&'a self, view: &MapView, layer: &'a Layer) -> Option<&'a Arc<RunRef>> {
        match layer {
            Layer::Memory(memtable) => {
                self.memtables.iter().find(|(ours, _)| Arc::ptr_eq(ours, memtable)).map(|(_, run)| run)
            }
            Layer::Run(run) if needs_writing(view, layer) => {
                self.linked.iter().find(|(ours, _)| Arc::ptr_eq(ours, run)).map(|(_, run)| run)
            }
            Layer::Run(run) => Some(run),
        }
    }
}

/// Whether a root cannot name the layer as it is.
fn needs_writing(view: &MapView, layer: &Layer) -> bool {
    match layer {
        Layer::Memory(_) => true,
        Layer::Run(run) => match &**run {
            RunRef::Pages(pages) => pages.len() > view.source().limits().inline_pages,
            RunRef::Indexed(_) => false,
        },
    }
}

async fn stored_run(view: &MapView, pages: Vec<PageRef>) -> Result<Arc<RunRef>, MapError> {
    let run = run_of(view.source(), pages).await?;
    Ok(Arc::new(run.unwrap_or(RunRef::Pages(Vec::new()))))
}
