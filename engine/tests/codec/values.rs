//! Arbitrary values of everything that has a format.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_engine::codec::{Codec, DataKey, Identity};
use holdfast_engine::ids::{ObjectId, PoolId, RecordNumber, SnapshotId, VolumeId};
use holdfast_engine::log::{Control, Grant, GrantMode, Move, Op, Reader, Record, Session, Snapshot};
use holdfast_engine::map::{
    Extent, IndexRef, Location, Origin, PackPlace, PageRef, Root, RunRef, SegmentKind, SegmentRef,
    SnapshotMap, StoredMap,
};
use proptest::collection::{btree_map, btree_set, vec};
use proptest::option;
use proptest::prelude::{Just, Strategy, any, prop_oneof};

pub const BLOCK: usize = 4096;

pub fn key() -> impl Strategy<Value = Option<DataKey>> {
    option::of(any::<[u8; 32]>().prop_map(DataKey::new))
}

pub fn codec() -> impl Strategy<Value = Codec> {
    prop_oneof![Just(Codec::Raw), Just(Codec::Lz4), Just(Codec::Zstd)]
}

pub fn object_id() -> impl Strategy<Value = ObjectId> {
    any::<[u8; 16]>().prop_map(ObjectId)
}

/// From a few only, as in real objects.
pub fn volume_id() -> impl Strategy<Value = VolumeId> {
    (1..4_u8).prop_map(|n| VolumeId([n; 16]))
}

pub fn identity() -> impl Strategy<Value = Identity> {
    (volume_id(), object_id(), object_id()).prop_map(|(volume, id, session)| Identity { volume, id, session })
}

fn segment() -> impl Strategy<Value = SegmentRef> {
    let kind = prop_oneof![Just(SegmentKind::Object), Just(SegmentKind::Record)];
    (volume_id(), 0..5_u64, 0..5_u8, kind).prop_map(|(volume, birth, id, kind)| SegmentRef {
        volume,
        birth: RecordNumber(birth),
        id: ObjectId([id; 16]),
        kind,
    })
}

/// A place for `blocks` blocks, 1 to 16.
fn location(blocks: u32) -> impl Strategy<Value = Location> {
    let shape = (blocks as u8..=16).prop_flat_map(move |chunk| (Just(chunk), 0..=chunk - blocks as u8));
    (segment(), any::<u32>(), any::<u32>(), codec(), shape).prop_map(
        |(segment, stored_offset, stored_len, codec, (chunk_blocks, chunk_offset))| Location {
            segment,
            stored_offset,
            stored_len,
            codec,
            chunk_blocks,
            chunk_offset,
        },
    )
}

fn piece() -> impl Strategy<Value = (u32, Option<Location>)> {
    prop_oneof![
        (1..=16_u32).prop_flat_map(|blocks| (Just(blocks), location(blocks).prop_map(Some))),
        (1..=u32::MAX).prop_map(|blocks| (blocks, None)),
    ]
}

/// Sorted extents that do not overlap.
pub fn extents(max: usize) -> impl Strategy<Value = Vec<Extent>> {
    vec((0..1000_u64, piece()), 0..max).prop_map(|pieces| {
        let mut end = 0;
        let place = |(gap, (blocks, location))| {
            let lba = end + gap;
            end = lba + u64::from(blocks);
            Extent { lba, blocks, location }
        };
        pieces.into_iter().map(place).collect()
    })
}

fn moves() -> impl Strategy<Value = Vec<Move>> {
    let places = (1..=16_u32).prop_flat_map(|blocks| (Just(blocks), location(blocks), location(blocks)));
    vec((0..1000_u64, places), 0..20).prop_map(|pieces| {
        let mut end = 0;
        let place = |(gap, (blocks, to, from))| {
            let lba = end + gap;
            end = lba + u64::from(blocks);
            Move { to: Extent { lba, blocks, location: Some(to) }, from }
        };
        pieces.into_iter().map(place).collect()
    })
}

/// Pages of a run.
pub fn pages(max: usize) -> impl Strategy<Value = Vec<PageRef>> {
    pages_at(max, option::of(place()))
}

/// A place in a pack.
fn place() -> impl Strategy<Value = PackPlace> {
    (1..=u16::MAX, 1..=u16::MAX, 1..=16_u8).prop_map(|(at, len, few)| PackPlace {
        offset: u32::from(at) * 32,
        len,
        pages: few * 4,
    })
}

fn pages_at(
    max: usize,
    place: impl Strategy<Value = Option<PackPlace>>,
) -> impl Strategy<Value = Vec<PageRef>> {
    vec((0..1000_u64, 1..1_000_000_u64, volume_id(), object_id(), place, 0..4096_u32), 0..max).prop_map(
        |pieces| {
            let mut end = 0;
            let page = |(gap, blocks, volume, id, place, extents)| {
                let first_lba = end + gap;
                end = first_lba + blocks;
                PageRef { first_lba, end_lba: end, volume, id, place, extents }
            };
            pieces.into_iter().map(page).collect()
        },
    )
}

fn mode() -> impl Strategy<Value = GrantMode> {
    prop_oneof![Just(GrantMode::ReadWrite), Just(GrantMode::ReadOnly), Just(GrantMode::Maintenance)]
}

fn snapshot_id() -> impl Strategy<Value = SnapshotId> {
    any::<u64>().prop_map(SnapshotId)
}

fn text() -> impl Strategy<Value = String> {
    "[a-z0-9äß☃ {}:\"-]{0,40}"
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        any::<u64>().prop_map(|size_bytes| Op::Create { size_bytes }),
        Just(Op::Dead),
        (text(), mode()).prop_map(|(node, mode)| Op::Grant { node, mode }),
        object_id().prop_map(|grant| Op::Revoke { grant }),
        (object_id(), object_id(), text()).prop_map(|(grant, resumes, endpoint)| Op::Open {
            grant,
            resumes,
            endpoint
        }),
        Just(Op::Close),
        Just(Op::Maintain),
        (text(), text()).prop_map(|(name, meta)| Op::Snapshot { name, meta }),
        snapshot_id().prop_map(|snapshot| Op::DeleteSnapshot { snapshot }),
        (snapshot_id(), text()).prop_map(|(snapshot, meta)| Op::Annotate { snapshot, meta }),
        any::<u64>().prop_map(|size_bytes| Op::Resize { size_bytes }),
        extents(20).prop_map(|extents| Op::Write { extents }),
        pages(20).prop_map(|pages| Op::WritePages { pages }),
        moves().prop_map(|moves| Op::Relocate { moves }),
        (snapshot_id(), any::<u32>(), object_id())
            .prop_map(|(snapshot, generation, map)| Op::SwitchSnapshotMap { snapshot, generation, map }),
        snapshot_id().prop_map(|snapshot| Op::ForgetSnapshot { snapshot }),
        object_id().prop_map(|run| Op::RunCommitted { run }),
        object_id().prop_map(|run| Op::RunEnded { run }),
        Just(Op::Noop),
    ]
}

pub fn record() -> impl Strategy<Value = Record> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u64>());
    (identity(), object_id(), numbers, vec(op(), 0..8)).prop_map(
        |(Identity { volume, id, session }, prev, (number, time_ms, buffer_complete), ops)| Record {
            volume,
            number: RecordNumber(number),
            id,
            session,
            prev,
            time_ms,
            buffer_complete,
            ops,
        },
    )
}

fn snapshots() -> impl Strategy<Value = BTreeMap<SnapshotId, Snapshot>> {
    let numbers = (any::<u64>(), any::<u64>(), any::<u32>());
    let snapshot = (text(), text(), numbers, any::<bool>(), option::of(object_id())).prop_map(
        |(name, meta, (time_ms, size_bytes, generation), deleted, map)| Snapshot {
            name,
            meta,
            time_ms,
            size_bytes,
            deleted,
            generation,
            map,
        },
    );
    btree_map(snapshot_id(), snapshot, 0..5)
}

fn control() -> impl Strategy<Value = Control> {
    let numbers = (any::<u64>(), any::<u64>(), any::<bool>());
    let grant = (object_id(), text(), mode()).prop_map(|(id, node, mode)| Grant { id, node, mode });
    let session =
        (object_id(), object_id(), text()).prop_map(|(id, grant, endpoint)| Session { id, grant, endpoint });
    let readers = vec((object_id(), text()).prop_map(|(id, node)| Reader { id, node }), 0..4);
    let runs = btree_set(object_id(), 0..4).prop_map(|runs: BTreeSet<ObjectId>| runs);
    (object_id(), numbers, option::of(grant), option::of(session), readers, snapshots(), runs).prop_map(
        |(last, (size_bytes, buffer_complete, dead), grant, session, readers, snapshots, ended_runs)| {
            Control {
                last,
                size_bytes,
                grant,
                readers,
                session,
                buffer_complete,
                snapshots,
                ended_runs,
                dead,
            }
        },
    )
}

fn stored_map() -> impl Strategy<Value = StoredMap> {
    let to_index = |PageRef { first_lba, end_lba, volume, id, extents, .. }| IndexRef {
        first_lba,
        end_lba,
        volume,
        id,
        pages: extents,
    };
    let run = prop_oneof![
        pages(6).prop_map(RunRef::Pages),
        pages_at(6, Just(None))
            .prop_map(move |pages| RunRef::Indexed(pages.into_iter().map(to_index).collect())),
    ];
    let origin = (any::<[u8; 16]>(), volume_id(), snapshot_id())
        .prop_map(|(pool, volume, snapshot)| Origin { pool: PoolId(pool), volume, snapshot });
    (vec(run, 0..4), vec(origin, 0..4)).prop_map(|(runs, origins)| StoredMap { runs, origins })
}

pub fn root() -> impl Strategy<Value = Root> {
    (volume_id(), object_id(), any::<u64>(), control(), stored_map()).prop_map(
        |(volume, id, number, control, map)| Root { volume, id, number: RecordNumber(number), control, map },
    )
}

pub fn snapshot_map() -> impl Strategy<Value = SnapshotMap> {
    (volume_id(), object_id(), snapshot_id(), any::<u64>(), stored_map()).prop_map(
        |(volume, id, snapshot, size_bytes, map)| SnapshotMap { volume, id, snapshot, size_bytes, map },
    )
}

/// Runs of blocks as a flush has them: where, in which order, what. Some compress, some do not.
pub fn runs() -> impl Strategy<Value = Vec<(u64, u64, Vec<u8>)>> {
    let data = (1..40_usize, any::<u8>(), any::<bool>()).prop_map(|(blocks, seed, random)| {
        let byte = |at: usize| if random { noise(at as u64 ^ u64::from(seed) << 32) } else { seed };
        (0..blocks * BLOCK).map(byte).collect::<Vec<_>>()
    });
    vec((0..100_u64, 0..10_u64, data), 1..6)
}

/// A byte that no compressor can guess from its neighbours.
pub fn noise(at: u64) -> u8 {
    let mut x = at.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 31)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x >> 56) as u8
}
