/*
 * A file system in user space with one file, "f", of one page, whose server is slow on purpose: the operations that SLOW
 * names (of "read write flush poll attr") wait until the file at the path GATE exists, at most a minute. An operation that
 * begins to wait makes the file GATE.name, so that a test knows when it does.
 *
 * WRITEBACK=1 turns on the cache that keeps what was written through a mapping until the file is closed.
 */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char gate[4096]; /* an absolute path */

static void slow(const char *name)
{
	const char *which = getenv("SLOW");
	char mark[sizeof gate + 16];

	if (which == NULL || strstr(which, name) == NULL)
		return;
	snprintf(mark, sizeof mark, "%s.%s", gate, name);
	close(open(mark, O_WRONLY | O_CREAT, 0600));
	for (int i = 0; i < 6000 && access(gate, F_OK) != 0; i++)
		usleep(10000);
}

/* Slow once there is a file GATE.opened: who opens a file asks for its attributes too. */
static int fs_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
	char opened[sizeof gate + 16];

	(void)fi;
	snprintf(opened, sizeof opened, "%s.opened", gate);
	if (access(opened, F_OK) == 0)
		slow("attr");
	memset(st, 0, sizeof *st);
	st->st_nlink = 1;
	if (strcmp(path, "/") == 0) {
		st->st_mode = S_IFDIR | 0755;
		return 0;
	}
	if (strcmp(path, "/f") != 0)
		return -ENOENT;
	st->st_mode = S_IFREG | 0666;
	st->st_size = 4096;
	return 0;
}

static int fs_open(const char *path, struct fuse_file_info *fi)
{
	(void)path, (void)fi;
	return 0;
}

static int fs_read(const char *path, char *buf, size_t n, off_t at, struct fuse_file_info *fi)
{
	(void)path, (void)at, (void)fi;
	slow("read");
	memset(buf, 'f', n);
	return n;
}

static int fs_write(const char *path, const char *buf, size_t n, off_t at, struct fuse_file_info *fi)
{
	(void)path, (void)buf, (void)at, (void)fi;
	slow("write");
	return n;
}

static int fs_flush(const char *path, struct fuse_file_info *fi)
{
	(void)path, (void)fi;
	slow("flush");
	return 0;
}

static int fs_poll(const char *path, struct fuse_file_info *fi, struct fuse_pollhandle *ph, unsigned *events)
{
	(void)path, (void)fi;
	if (ph != NULL)
		fuse_pollhandle_destroy(ph);
	slow("poll");
	*events = POLLIN;
	return 0;
}

static void *fs_init(struct fuse_conn_info *conn, struct fuse_config *config)
{
	config->attr_timeout = 0; /* ask each time */
	if (getenv("WRITEBACK") != NULL)
		conn->want |= FUSE_CAP_WRITEBACK_CACHE;
	return NULL;
}

static const struct fuse_operations operations = {
	.init = fs_init,
	.getattr = fs_getattr,
	.open = fs_open,
	.read = fs_read,
	.write = fs_write,
	.flush = fs_flush,
	.poll = fs_poll,
};

int main(int argc, char **argv)
{
	snprintf(gate, sizeof gate, "%s", getenv("GATE"));
	return fuse_main(argc, argv, &operations, NULL);
}
