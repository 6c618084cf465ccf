//! The entries that the keeper holds.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::protocol::{LIST_PAGE, MAX_ENTRIES, MAX_METADATA_BYTES, MAX_NAME_BYTES, Name, Refusal};

/// Descriptors and a text; shared, so that an answer can be sent without holding the table.
#[derive(Debug)]
pub struct Entry {
    pub metadata: String,
    pub fds: Vec<OwnedFd>,
}

/// All entries, in the order of their names.
#[derive(Debug, Default)]
pub struct Table {
    entries: BTreeMap<Name, Arc<Entry>>,
}

impl Table {
    pub fn put(&mut self, name: Name, entry: Entry) -> Result<(), Refusal> {
        check_name(&name.key)?;
        check_name(&name.kind)?;
        if entry.metadata.len() > MAX_METADATA_BYTES {
            return Err(malformed(format!("the metadata is longer than {MAX_METADATA_BYTES} bytes")));
        }
        if entry.fds.is_empty() {
            return Err(malformed("an entry needs at least one descriptor".into()));
        }
        if self.entries.len() >= MAX_ENTRIES && !self.entries.contains_key(&name) {
            return Err(Refusal::Full { what: "entries".into(), bound: MAX_ENTRIES });
        }
        self.entries.insert(name, Arc::new(entry));
        Ok(())
    }

    pub fn get(&self, name: &Name) -> Result<Arc<Entry>, Refusal> {
        self.entries.get(name).cloned().ok_or(Refusal::NotFound)
    }

    pub fn remove(&mut self, name: &Name) {
        self.entries.remove(name);
    }

    pub fn list(&self, after: Option<&Name>) -> (Vec<Name>, bool) {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rest = self.entries.range::<Name, _>((from, Bound::Unbounded)).map(|(name, _)| name);
        let page: Vec<Name> = rest.by_ref().take(LIST_PAGE).cloned().collect();
        (page, rest.next().is_some())
    }
}

pub fn check_name(name: &str) -> Result<(), Refusal> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES {
        return Err(malformed(format!("a name has 1 to {MAX_NAME_BYTES} bytes")));
    }
    Ok(())
}

pub fn malformed(detail: String) -> Refusal {
    Refusal::Malformed { detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry { metadata: String::new(), fds: vec![rustix::pipe::pipe().unwrap().0] }
    }

    #[test]
    fn a_list_is_paged_without_gaps() {
        let mut table = Table::default();
        for number in 0..LIST_PAGE + 3 {
            table.put(Name::new(&format!("{number:04}"), "stack"), entry()).unwrap();
        }
        let (first, more) = table.list(None);
        assert!(more);
        let (second, more) = table.list(first.last());
        assert!(!more);
        assert_eq!((first.len(), second.len()), (LIST_PAGE, 3));
        assert!(first.last() < second.first());
    }

    #[test]
    fn bad_entries_change_nothing() {
        let mut table = Table::default();
        let no_fds = Entry { metadata: String::new(), fds: Vec::new() };
        let long = Entry { metadata: "x".repeat(MAX_METADATA_BYTES + 1), ..entry() };
        for (name, bad) in
            [("a", no_fds), ("a", long), ("", entry()), (&"x".repeat(MAX_NAME_BYTES + 1), entry())]
        {
            assert!(matches!(table.put(Name::new(name, "stack"), bad), Err(Refusal::Malformed { .. })));
        }
        assert!(table.list(None).0.is_empty());
    }
}
