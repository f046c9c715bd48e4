"""Sources of images: files, folders, lists, videos, cameras and addresses, each as a stream of frames."""
