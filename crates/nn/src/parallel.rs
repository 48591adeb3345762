//! Work on all threads with buffers that live as long as the work does.

use std::sync::Mutex;

use rayon::prelude::*;

/// `work(state, task)` of each task, in the order of the tasks. Each thread has one state, which serves the tasks that it happens to take: rayon's own
/// `map_init` makes a new one wherever it splits the work.
pub(crate) fn map_with<S: Default, T: Send, R: Send>(
    tasks: impl Iterator<Item = T> + Send,
    work: impl Fn(&mut S, T) -> R + Sync,
) -> Vec<R> {
    let tasks = Mutex::new(tasks.enumerate());
    let next = || tasks.lock().expect("no task panicked").next();
    let on_one_thread = |_| {
        let (mut state, mut results) = (S::default(), Vec::new());
        while let Some((index, task)) = next() {
            results.push((index, work(&mut state, task)));
        }
        results
    };
    let mut results: Vec<(usize, R)> =
        (0..rayon::current_num_threads()).into_par_iter().with_max_len(1).flat_map_iter(on_one_thread).collect();
    results.sort_unstable_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_the_order_of_the_tasks() {
        let squares = map_with(0..1000_usize, |count: &mut usize, task| {
            *count += 1;
            (task * task, *count)
        });
        assert!(squares.iter().enumerate().all(|(task, (square, _))| *square == task * task));
        let most = squares.iter().map(|(_, count)| *count).max().unwrap();
        assert!(most >= 1000 / rayon::current_num_threads(), "a state serves many tasks, not {most}");
        assert!(map_with(std::iter::empty::<u8>(), |(), task| task).is_empty());
    }
}
