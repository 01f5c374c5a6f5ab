//! The tree sum over the ranks: whoever owns a slice of the numbers collects everybody's nodes of that slice, adds them up the one
//! tree, and hands the sums to everybody. Every sum is made once, and copied.
//!
//! The numbers go in blocks, so that the memory for what comes stays bounded whatever the width.

use super::{
    engine::Engine,
    flow::Exchange,
    header::{Call, Kind},
};
use crate::{
    CollectiveError, TreeSum,
    tree::{finish, partials},
};
use std::ops::Range;

/// Numbers of one slice: what one rank adds at a time.
const SLICE: usize = 128 << 10;

const NUMBER: usize = size_of::<f32>();

/// What a rank says about its part: groups in all, first and end of its own, numbers per group.
type Plan = [u64; 4];

pub(super) fn run(engine: &mut Engine, mine: &TreeSum, out: &mut [f32]) -> Result<(), CollectiveError> {
    let (rank, world, groups) = (engine.rank as usize, engine.world(), mine.groups());
    let runs = agree(engine, mine)?;
    let nodes_of = runs.iter().map(|run| partials(groups, run)).collect::<Vec<_>>();
    let first_node = |peer: usize| nodes_of[..peer].iter().map(Vec::len).sum::<usize>();
    let nodes = nodes_of.concat();
    if nodes.is_empty() {
        out.fill(0.0);
        return Ok(());
    }
    let rows = mine.rows()?.map(|(_, row)| row).collect::<Vec<_>>();
    let row_bytes = rows.iter().map(|row| bytemuck::cast_slice(row)).collect::<Vec<_>>();
    let mut work = vec![0f32; nodes.len() * SLICE.min(out.len().div_ceil(world))];

    let width = out.len();
    for start in (0..width).step_by(world * SLICE) {
        let block = start..width.min(start + world * SLICE);
        let share = block.len().div_ceil(world);
        let slice = |peer: usize| {
            let begin = block.end.min(block.start + peer * share);
            begin..block.end.min(begin + share)
        };
        let own = slice(rank);
        let own_width = own.len();
        let work = &mut work[..nodes.len() * own_width];
        engine.run(
            Call::new(Kind::TreeParts, width),
            &mut Exchange {
                rank,
                rows: &row_bytes,
                columns: &|peer| in_bytes(slice(peer)),
                into: bytemuck::cast_slice_mut(work),
                spans: &|peer| in_bytes(first_node(peer) * own_width..first_node(peer + 1) * own_width),
            },
        )?;
        for (row, target) in rows.iter().zip(work[first_node(rank) * own_width..].chunks_exact_mut(own_width.max(1))) {
            target.copy_from_slice(&row[own.clone()]);
        }
        finish(groups, &nodes, work, own_width);
        let sums = &work[..own_width];
        engine.run(
            Call::new(Kind::TreeSums, width),
            &mut Exchange {
                rank,
                rows: &[bytemuck::cast_slice(sums)],
                columns: &|_| 0..own_width * NUMBER,
                into: bytemuck::cast_slice_mut(out),
                spans: &|peer| in_bytes(slice(peer)),
            },
        )?;
        out[own].copy_from_slice(sums);
    }
    Ok(())
}

fn in_bytes(numbers: Range<usize>) -> Range<usize> {
    numbers.start * NUMBER..numbers.end * NUMBER
}

/// Everybody's run of groups, by rank, once all have said the same of the whole and the runs adjoin.
fn agree(engine: &mut Engine, mine: &TreeSum) -> Result<Vec<Range<usize>>, CollectiveError> {
    let (rank, world) = (engine.rank as usize, engine.world());
    let run = mine.mine();
    let plan: Plan = [mine.groups() as u64, run.start as u64, run.end as u64, mine.width() as u64];
    let mut plans = vec![[0u64; 4]; world];
    let size = size_of::<Plan>();
    engine.run(
        Call::new(Kind::TreePlan, 0),
        &mut Exchange {
            rank,
            rows: &[bytemuck::bytes_of(&plan)],
            columns: &|_| 0..size,
            into: bytemuck::cast_slice_mut(&mut plans),
            spans: &|peer| peer * size..(peer + 1) * size,
        },
    )?;
    plans[rank] = plan;
    let mut next = 0;
    for (peer, &[groups, start, end, width]) in (0..).zip(&plans) {
        let last = peer as usize + 1 == world;
        if groups != plan[0] || width != plan[3] || start != next || end < start || (last && end != groups) {
            let what = format!(
                "it brings groups {start}..{end} of {groups} with {width} numbers each, where group {next} of {} with {} \
                 numbers comes next",
                plan[0], plan[3]
            );
            return Err(engine.fate().end(CollectiveError::Protocol { rank: peer, what }));
        }
        next = end;
    }
    // Nothing is cut off: every bound is at most this rank's own number of groups.
    Ok(plans.iter().map(|plan| plan[1] as usize..plan[2] as usize).collect())
}
