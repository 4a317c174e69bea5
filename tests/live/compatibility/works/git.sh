# Commit, branch, merge, clone, push, pack and check a repository.
export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a GIT_COMMITTER_EMAIL=a@b
git init --quiet --initial-branch=main one
cd one
echo first >file
git add file
git commit --quiet --message=first
git switch --quiet --create side
echo second >>file
git commit --quiet --all --message=second
git switch --quiet main
git merge --quiet --no-ff --message=merged side
git clone --quiet --bare . ../bare
git clone --quiet ../bare ../two
cd ../two
echo third >>file
git commit --quiet --all --message=third
git push --quiet origin main
git gc --quiet
git fsck --no-progress
[ "$(git --git-dir=../bare log --format=%s --first-parent | tr '\n' ' ')" = 'third merged first ' ]
