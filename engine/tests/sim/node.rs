//! What a process does on its node: it serves a volume, and looks after the journals that nobody serves.

use std::sync::Arc;
use std::time::Duration;

use holdfast_engine::control::describe;
use holdfast_engine::ids::GrantId;
use holdfast_engine::journal::{JournalName, SettleError, Settled};
use holdfast_engine::volume::OpenError;
use tokio::time::{Instant, sleep};

use crate::chance::Chance;
use crate::client::{Opened, Place, Site, use_volume};
use crate::journal::NodeJournals;

/// How long one step of settling a journal waits for the store.
const LIMIT: Duration = Duration::from_secs(60);
/// How often somebody tries to let go of a volume in the normal way.
const ATTEMPTS: usize = 5;

/// Lives the life of a process on a node.
pub async fn serve(site: Arc<Site>, place: Place, grant: GrantId) {
    let process = Arc::clone(&place.process);
    tokio::select! {
        biased;
        () = process.died() => site.world.note(format_args!("{} is dead", process.name)),
        () = live(&site, &place, grant) => {}
    }
}

async fn live(site: &Arc<Site>, place: &Place, grant: GrantId) {
    let chance = site.world.chance.fork();
    if chance.hits(300) {
        // Before somebody wants the volume here again.
        settle_journals(site, place, None, &chance).await;
    }
    let tending = chance.fork();
    let used = tokio::select! {
        biased;
        used = use_volume(site, place, grant, &chance) => used,
        () = tend_journals(site, place, grant, &tending) => None,
    };
    let served = match used {
        Some(opened) if let_go(site, place, grant, &opened, &chance).await => None,
        Some(_) => Some(grant),
        None => None,
    };
    settle_journals(site, place, served, &chance).await;
}

/// Looks after the journals of other grants than the one that is served, for ever.
async fn tend_journals(site: &Arc<Site>, place: &Place, served: GrantId, chance: &Chance) {
    loop {
        sleep(chance.delay(1_000..120_000)).await;
        settle_journals(site, place, Some(served), chance).await;
    }
}

/// Lets go of a volume: in the normal way if the process was asked to, else if the volume was taken back. Whether the
/// process serves it no longer.
async fn let_go(site: &Arc<Site>, place: &Place, grant: GrantId, opened: &Opened, chance: &Chance) -> bool {
    let name = site.journal_name(grant);
    let node = place.journal.as_ref().map(|space| site.journals(place, space, chance));
    for _ in 0..ATTEMPTS {
        if opened.volume.check().is_err() {
            break;
        }
        if let Err(error) = opened.drain(&site.model).await {
            site.goes_on(&place.process.name, opened.at, "drain", &error);
            continue;
        }
        if let Some(node) = &node {
            end_journal(site, node, &name, opened).await;
        }
        let closed = opened.close(&site.model).await;
        place.process.live().await;
        site.world.note(format_args!("{} has let go: {}", place.process.name, closed.is_ok()));
        return closed.is_ok();
    }
    let Ok(control) = describe(&site.log(&place.process), Instant::now() + LIMIT).await else { return false };
    place.process.live().await;
    if control.grant.is_some_and(|held| held.id == grant) {
        return false;
    }
    opened.volume.abandon();
    if let Some(node) = &node {
        end_journal(site, node, &name, opened).await;
    }
    true
}

async fn end_journal(site: &Site, node: &NodeJournals, name: &JournalName, opened: &Opened) {
    let Some(journal) = opened.buffer().take_journal() else { return };
    match node.journals.end(name, &journal, site.world.now_ms()).await {
        Ok(ended) => site.world.note(format_args!("the journal {name}: {ended:?}")),
        Err(error) => node.failed(&error),
    }
}

/// Settles the journals on the node's disk, but for that of the grant that is served. Returns how many have to wait.
pub async fn settle_journals(
    site: &Arc<Site>,
    place: &Place,
    served: Option<GrantId>,
    chance: &Chance,
) -> usize {
    let Some(space) = &place.journal else { return 0 };
    let node = site.journals(place, space, chance);
    let names = match node.journals.list().await {
        Ok(names) => names,
        Err(error) => {
            node.failed(&error);
            return 1;
        }
    };
    let mut wait = 0;
    for name in names.into_iter().filter(|name| served != Some(name.grant)) {
        wait += usize::from(!settle_journal(site, place, &node, &name, chance).await);
    }
    let keep = chance.delay(1_000..24 * 3600 * 1000);
    if let Err(error) = node.journals.expire(site.world.now_ms(), keep, 3 * space.len_bytes).await {
        node.failed(&error);
    }
    wait
}

/// Settles a journal. Whether it is no longer there.
async fn settle_journal(
    site: &Arc<Site>,
    place: &Place,
    node: &NodeJournals,
    name: &JournalName,
    chance: &Chance,
) -> bool {
    let mut opened = None;
    let open = async || {
        opened = match site.open(place, name.grant, chance).await {
            Err(OpenError::NotGranted { .. }) => None,
            opened => opened?,
        };
        Ok::<_, OpenError>(opened.as_ref().map(|opened: &Opened| (opened.volume.clone(), opened.buffer())))
    };
    let settled = node.journals.settle(name, &node.reached.log, LIMIT, open).await;
    place.process.live().await;
    let process = &place.process.name;
    site.world.note(format_args!("{process} settles journal {name}: {settled:?}"));
    match settled {
        Ok(Settled::Written) => {
            if let Some(opened) = opened {
                site.model.stored(opened.session, site.model.count(opened.session));
            }
            return true;
        }
        Ok(Settled::Over(_)) => return true,
        Ok(Settled::Later) => {}
        Err(SettleError::Journals(error)) => node.failed(&error),
        Err(SettleError::Volume(error)) => {
            if let Some(opened) = opened {
                site.goes_on(process, opened.at, "settle", &error);
            }
        }
        Err(SettleError::Open(OpenError::Buffer(error))) => {
            site.model.violation(format!("{process}: {error}"));
        }
        Err(SettleError::Open(_) | SettleError::Log(_) | SettleError::Late { .. }) => {}
    }
    false
}
