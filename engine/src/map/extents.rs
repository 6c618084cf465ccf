//! Many extents in memory.

use std::sync::Arc;

use super::page::PAGE_SPAN_MAX;
use super::{Extent, LoadedPage, MapError, SegmentTable};

/// Extents of one part.
const PART_EXTENTS: usize = 2048;

/// Sorted extents that do not overlap, packed as in loaded pages: 16 bytes each, and the names of their segments.
#[derive(Debug, Default)]
pub struct Extents {
    parts: Vec<LoadedPage>,
}

impl Extents {
    /// Those that end after `lba`, the first cut to begin there.
    pub fn from(&self, lba: u64) -> impl Iterator<Item = Extent> {
        let first = self.parts.partition_point(|part| part.end_lba() <= lba);
        self.parts[first..].iter().flat_map(move |part| part.extents(lba..u64::MAX))
    }

    /// Bytes of memory that they take.
    pub fn bytes(&self) -> usize {
        self.parts.iter().map(LoadedPage::bytes).sum()
    }
}

/// Packs extents.
#[derive(Debug)]
pub struct ExtentsWriter {
    segments: Arc<SegmentTable>,
    open: Vec<Extent>,
    packed: Extents,
    packed_bytes: usize,
}

impl ExtentsWriter {
    /// For extents whose segments `segments` names.
    pub fn new(segments: Arc<SegmentTable>) -> Self {
        Self { segments, open: Vec::new(), packed: Extents::default(), packed_bytes: 0 }
    }

    /// Adds an extent after all others.
    pub fn push(&mut self, extent: Extent) -> Result<(), MapError> {
        if let Some(last) = self.open.last_mut()
            && last.joins(&extent)
        {
            last.blocks += extent.blocks;
            return Ok(());
        }
        let spans = self.open.first().is_some_and(|first| extent.end() - first.lba > PAGE_SPAN_MAX);
        if spans || self.open.len() == PART_EXTENTS {
            self.pack()?;
        }
        self.open.push(extent);
        Ok(())
    }

    /// Bytes of memory that they take so far.
    pub fn bytes(&self) -> usize {
        self.packed_bytes + size_of_val(&*self.open)
    }

    /// All of them.
    pub fn finish(mut self) -> Result<Extents, MapError> {
        self.pack()?;
        self.packed.parts.shrink_to_fit();
        Ok(self.packed)
    }

    fn pack(&mut self) -> Result<(), MapError> {
        if !self.open.is_empty() {
            let part =
                LoadedPage::new(&self.open, &self.segments).map_err(|what| MapError::Refused { what })?;
            self.packed_bytes += part.bytes();
            self.packed.parts.push(part);
            self.open.clear();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::extent;
    use super::*;

    #[test]
    fn extents_come_back_from_any_block_on_also_where_they_lie_far_apart() {
        let mut writer = ExtentsWriter::new(Arc::default());
        let far = |n: u64| n * 20 + if n > 3000 { 1 << 33 } else { 0 };
        let all: Vec<Extent> = (0..5000).map(|n| extent(far(n), 16, n / 40, n as u32 % 40, 0)).collect();
        for one in &all {
            // In two halves, which join.
            writer.push(one.slice(one.lba, one.lba + 5)).unwrap();
            writer.push(one.slice(one.lba + 5, one.end())).unwrap();
        }
        let packed = writer.finish().unwrap();
        assert_eq!(packed.from(0).collect::<Vec<_>>(), all);
        assert!(packed.bytes() <= all.len() * 20);
        let mut cut = all[2500..].to_vec();
        cut[0] = cut[0].slice(cut[0].lba + 3, cut[0].end());
        assert_eq!(packed.from(cut[0].lba).collect::<Vec<_>>(), cut);
    }
}
