//! Bytes as damage and malice make them. A seed makes the same ones always.

/// A stream of numbers (SplitMix64).
#[derive(Debug)]
pub struct Mutator {
    state: u64,
}

/// How many inputs a test tries: `HOLDFAST_FUZZ` says how many, or `usual`.
pub fn iterations(usual: u64) -> u64 {
    std::env::var("HOLDFAST_FUZZ").map_or(usual, |text| text.parse().expect("HOLDFAST_FUZZ is a number"))
}

impl Mutator {
    /// The stream of this seed.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`; zero if there is none.
    pub fn below(&mut self, end: usize) -> usize {
        (self.draw() % (end as u64).max(1)) as usize
    }

    /// One of `all`, which are some.
    pub fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    /// Changes `bytes` in one to four ways; parts of `others` may get into them.
    pub fn mutate(&mut self, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
        for _ in 0..=self.below(4) {
            self.change(bytes, others);
        }
    }

    fn change(&mut self, bytes: &mut Vec<u8>, others: &[Vec<u8>]) {
        match self.below(9) {
            0 => self.flip(bytes),
            1 => bytes.truncate(self.below(bytes.len())),
            2 => {
                let (from, to) = self.range(bytes.len());
                bytes.drain(from..to);
            }
            3 => {
                let (from, to) = self.range(bytes.len());
                let copy = bytes[from..to].to_vec();
                let at = self.below(bytes.len() + 1);
                bytes.splice(at..at, copy);
            }
            4 => {
                let other = self.pick(others).clone();
                let (from, to) = self.range(other.len());
                let at = self.below(bytes.len() + 1);
                let end = if self.below(2) == 0 { at } else { (at + to - from).min(bytes.len()) };
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            5 => {
                let (from, to) = self.range(bytes.len());
                let byte = *self.pick(&[0, 0xff, 0x7f, 0x80, 1]);
                bytes[from..to].fill(byte);
            }
            // Lengths and counts.
            _ => self.set_number(bytes),
        }
    }

    fn flip(&mut self, bytes: &mut [u8]) {
        let (at, bit) = (self.below(bytes.len()), self.below(8));
        if let Some(byte) = bytes.get_mut(at) {
            *byte ^= 1 << bit;
        }
    }

    /// A range of at most 64 bytes.
    fn range(&mut self, len: usize) -> (usize, usize) {
        let from = self.below(len + 1);
        (from, (from + self.below(64)).min(len))
    }

    /// Puts a number of one to eight bytes at the edge of what it can say, or of what there is.
    fn set_number(&mut self, bytes: &mut [u8]) {
        let width = *self.pick(&[1, 2, 4, 8]);
        if bytes.len() < width {
            return;
        }
        let at = self.below(bytes.len() - width + 1);
        let len = bytes.len() as u64;
        let edges = [0, 1, 2, u64::MAX, u64::MAX - 1, u64::MAX >> 1, 1 << 63, 1 << 31, len, len + 1, len - 1];
        let number = match self.below(3) {
            0 => *self.pick(&edges),
            // The edges of the width itself.
            1 => {
                *self.pick(&[u64::MAX >> (64 - 8 * width), (1 << (8 * width - 1)) - 1, 1 << (8 * width - 1)])
            }
            // A little more or less than what is there.
            _ => {
                let mut now = [0; 8];
                now[..width].copy_from_slice(&bytes[at..at + width]);
                u64::from_le_bytes(now).wrapping_add(self.below(9) as u64).wrapping_sub(4)
            }
        };
        bytes[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
    }
}
