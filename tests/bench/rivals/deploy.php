<?php

// Deployer's own recipe for Laravel, and what its documentation adds to it: PHP-FPM and the workers.

namespace Deployer;

require 'recipe/laravel.php';

set('application', 'lms');
set('repository', '/srv/bench/lms.git');
set('sub_directory', 'backend');
set('keep_releases', 5);
set('writable_mode', 'chmod');
set('env', ['COMPOSER_HOME' => '/srv/bench/deployer/composer', 'COMPOSER_ALLOW_SUPERUSER' => '1']);

localhost()->set('deploy_path', '/srv/bench/deployer');

task('php-fpm:reload', function () {
    run('systemctl reload "php$(ls /etc/php)-fpm"');
});

after('deploy:symlink', 'php-fpm:reload');
after('deploy:symlink', 'artisan:queue:restart');
after('rollback', 'php-fpm:reload');
after('rollback', 'artisan:queue:restart');
after('deploy:failed', 'deploy:unlock');
